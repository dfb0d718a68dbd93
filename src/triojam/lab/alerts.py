"""The lab's alerts: rules with shorter times, and a receiver of each change."""

import json
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio

from triojam.errors import LabError
from triojam.lab.network import LOOPBACK
from triojam.web.http_connection import Request, Response
from triojam.web.http_server import HttpServer
from triojam.web.kernel_clock import KernelClock, read_kernel_clock

CLOCK_ALERT = "TriojamClockUnsynchronized"
PATH = "/alerts"
LONGEST_ALERTS = 4 * 1024 * 1024

# In seconds. A rate needs two scrapes in its window, and one of them may be late or lost.
SHORTEST_WINDOW = 4.0

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
# Where the links of the shipped rules lead.
_RUNBOOKS = re.compile(r"https://triojam\.example/runbooks#|(?<=runbook: )RUNBOOKS\.md#")
_TIMES = re.compile(
    rf"(?P<window>(?<=\[){_DURATION}(?=[\]:]))"
    rf"|(?:(?<=\boffset )|(?<=\bfor: )|(?<=\bkeep_firing_for: )|(?<=\binterval: )){_DURATION}"
)


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A change of an alert, as Alertmanager reports it.

    began: identifies this change. expression: the alert's query. runbook: its link; both may be empty.
    server: the name of the server in a fleet.
    """

    name: str
    fires: bool
    severity: str
    summary: str
    labels: Mapping[str, str]
    fingerprint: str
    began: str
    expression: str
    runbook: str
    server: str = ""

    def __str__(self) -> str:
        state = "FIRING" if self.fires else "resolved"
        shown = filter(None, (self.name, self.severity, self.server, self.summary))
        return f"{state:8} {'  '.join(shown)}"


class UnsynchronizedClock:
    """Whether the kernel has called its clock unsynchronized since the start of the lab."""

    def __init__(self, read: Callable[[], KernelClock | None] = read_kernel_clock) -> None:
        self._read = read
        self.lasts = True
        self._look()

    def explains(self, alert: Alert) -> bool:
        """Whether an alert says only this. It also resolves when the server vanishes from Prometheus."""
        self._look()
        return self.lasts and alert.name == CLOCK_ALERT

    def _look(self) -> None:
        clock = self._read()
        self.lasts = self.lasts and clock is not None and not clock.synchronized


class Inbox:
    """Passes on each change of an alert once. known: whether an alert says nothing new."""

    def __init__(
        self, tell: Callable[[Alert], Awaitable[None]], known: Callable[[Alert], bool] = lambda _alert: False
    ) -> None:
        self._tell = tell
        self._known = known
        self._seen: dict[str, tuple[bool, str]] = {}

    async def take(self, alert: Alert) -> None:
        """Pass on an alert if it has changed: Alertmanager sends alerts again, e.g. after a lost answer."""
        state = (alert.fires, alert.began)
        if self._seen.get(alert.fingerprint) != state:
            self._seen[alert.fingerprint] = state
            if not self._known(alert):
                await self._tell(alert)


async def receive(inbox: Inbox, *, task_status: trio.TaskStatus[str]) -> None:
    """Take alerts on loopback, until cancelled. Reports the URL of the receiver."""

    async def answer(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        try:
            received = [parse(each) for each in json.loads(request.body)["alerts"]]
        except (ValueError, LookupError, TypeError, AttributeError):
            return Response(400, b"this is for Alertmanager's webhook\n")
        for each in received:
            await inbox.take(each)
        return Response()

    listeners = [socket.create_server((LOOPBACK, 0))]
    port = listeners[0].getsockname()[1]
    server = HttpServer(answer, longest_body=LONGEST_ALERTS)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(server.serve, listeners, stop=trio.Event()))
        task_status.started(f"http://{LOOPBACK}:{port}{PATH}")


def parse(alert: Mapping[str, Any]) -> Alert:
    """Read one alert of Alertmanager's webhook. Raises what its wrong shape raises."""
    labels, annotations = dict(alert["labels"]), dict(alert["annotations"])
    asked = parse_qs(urlsplit(alert.get("generatorURL", "")).query)
    runbook = annotations.get("runbook_url") or annotations.get("runbook") or ""
    return Alert(
        name=_line(labels["alertname"]),
        fires=alert["status"] == "firing",
        severity=_line(labels.get("severity", "")),
        summary=_line(annotations.get("summary", "")),
        labels=labels,
        fingerprint=alert["fingerprint"],
        began=alert["startsAt"],
        expression=asked.get("g0.expr", [""])[0],
        runbook=_line(runbook),
    )


def _line(text: str) -> str:
    """Return a text as one line that a terminal shows as it is."""
    return "".join(each if each.isprintable() else " " for each in text)


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


def write_sped_up(shipped: Path, folder: Path, speed: float, runbooks: str) -> list[Path]:
    """Write faster versions of a folder's rule files into a new folder, and return them.

    runbooks: the URL of the runbooks, to which the links of the alerts lead. Raises LabError if there are no
    rules.
    """
    rules = sorted(each for each in shipped.iterdir() if each.suffix == ".yml")
    if not rules:
        raise LabError(f"lab: no rules in {shipped}")
    folder.mkdir()
    written = []
    for each in rules:
        file = folder / each.name
        text = _RUNBOOKS.sub(f"{runbooks}#", each.read_text("utf-8"))
        file.write_text(speed_up(text, speed), "utf-8")
        written.append(file)
    return written
