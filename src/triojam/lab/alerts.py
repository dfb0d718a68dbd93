"""The lab's alerts: rules with shorter times, and a receiver that prints each alert as a line."""

import json
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from triojam.web.http_connection import Request, Response
from triojam.web.http_server import HttpServer

PATH = "/alerts"
LONGEST_ALERTS = 4 * 1024 * 1024

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

    async def answer(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        try:
            received = [(_identity(each), render(each)) for each in json.loads(request.body)["alerts"]]
        except (ValueError, LookupError, TypeError, AttributeError):
            return Response(400, b"this is for Alertmanager's webhook\n")
        for (fingerprint, state), line in received:
            if printed.get(fingerprint) != state:  # Alertmanager sends alerts again, e.g. after a lost answer
                printed[fingerprint] = state
                say(line)
        return Response()

    listeners = [socket.create_server((host, 0))]
    port = listeners[0].getsockname()[1]
    server = HttpServer(answer, longest_body=LONGEST_ALERTS)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.serve, listeners, stop=trio.Event()))
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
