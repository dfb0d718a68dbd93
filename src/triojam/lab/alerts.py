"""The lab's alerts: rules with shorter times, and a receiver that prints each alert as a line."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from triojam.web import http_server

PATH = "/alerts"

# In seconds. A rate needs two scrapes in its window, and one of them may be late or lost.
SHORTEST_WINDOW = 4.0

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
_TIMES = re.compile(
    rf"(?P<window>(?<=\[){_DURATION}(?=[\]:]))"
    rf"|(?:(?<=\boffset )|(?<=\bfor: )|(?<=\bkeep_firing_for: )|(?<=\binterval: )){_DURATION}"
)


async def receive(host: str, say: Callable[[str], None], *, task_status: trio.TaskStatus[str]) -> None:
    """Print each alert that fires or resolves, until cancelled. Reports the URL of the receiver."""
    printed: dict[str, tuple[str, str]] = {}

    async def alerts(request: Request) -> Response:
        try:
            received = [(_identity(each), render(each)) for each in (await request.json())["alerts"]]
        except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
            return PlainTextResponse("this is for Alertmanager's webhook\n", 400)
        for (fingerprint, state), line in received:
            if printed.get(fingerprint) != state:  # Alertmanager sends alerts again, e.g. after a lost answer
                printed[fingerprint] = state
                say(line)
        return PlainTextResponse("ok\n")

    sockets = [each.socket for each in await trio.open_tcp_listeners(0, host=host)]
    port = sockets[0].getsockname()[1]

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        await http_server.serve(
            Starlette(routes=[Route(PATH, alerts, methods=["POST"])]),
            sockets,
            stop=trio.Event(),
            error_log=logging.getLogger("triojam.lab"),
            task_status=task_status,
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        task_status.started(f"http://{host}:{port}{PATH}")


def render(alert: Mapping[str, Any]) -> str:
    """Return an alert as one line."""
    labels, annotations = alert["labels"], alert["annotations"]
    state = "FIRING" if alert["status"] == "firing" else "resolved"
    parts = (labels["alertname"], labels.get("severity", ""), annotations.get("summary", ""))
    return " ".join(f"{state:8} {'  '.join(filter(None, parts))}".split("\n"))


def _identity(alert: Mapping[str, Any]) -> tuple[str, tuple[str, str]]:
    return alert["fingerprint"], (alert["status"], alert["startsAt"])


def speed_up(text: str, speed: float) -> str:
    """Return a rule file with its windows and waiting times divided by `speed`."""

    def shorten(match: re.Match[str]) -> str:
        seconds = seconds_of(match[0]) / speed
        if match["window"]:
            seconds = max(seconds, min(SHORTEST_WINDOW, seconds_of(match[0])))
        return f"{max(round(seconds * 1000), 1)}ms"

    return text if speed == 1 else _TIMES.sub(shorten, text)


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration such as 1h30m, 5m or 100ms."""
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwy])", duration))


def write_sped_up(rules: Iterable[Path], folder: Path, speed: float) -> list[Path]:
    """Write faster versions of rule files into a new folder, and return them."""
    folder.mkdir()
    written = []
    for each in rules:
        file = folder / each.name
        file.write_text(speed_up(each.read_text("utf-8"), speed), "utf-8")
        written.append(file)
    return written
