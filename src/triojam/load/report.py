"""What a load's result looks like: as text for people, as JSON for programs."""

import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from triojam.client.render import format_seconds
from triojam.load.checker import Tally
from triojam.load.plan import Plan
from triojam.load.reconcile import Reconciliation

PERCENTILES = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99)
PLOT_ROWS, PLOT_COLUMNS = 10, 60
# From this share of one core on, the client is held to be at its limit.
FULL_CORE = 0.95


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a load was, `seconds` after its beginning."""

    seconds: float
    settled: int
    failed: int


@dataclass
class Result:
    """A load that has ended.

    seconds: how long it took. busy: the share of one core that the client used.
    balance: the server's counters, if they were read; unread: why they could not be, at the end.
    gave_up: whether it ended early, since nobody was there any more.
    """

    target: str
    plan: Plan
    tally: Tally
    seconds: float
    busy: float
    timeline: Sequence[Moment] = ()
    balance: Reconciliation | None = None
    unread: str | None = None
    interrupted: bool = False
    gave_up: bool = False
    _percentiles: "Percentiles" = field(init=False)

    def __post_init__(self) -> None:
        self._percentiles = Percentiles(self.tally.latencies)

    @property
    def faults(self) -> list[str]:
        """Say why the balance with the server does not close."""
        if self.unread is not None:
            return [self.unread]
        return self.balance.faults(self.tally) if self.balance is not None else []

    @property
    def complete(self) -> bool:
        """Whether every request got the answer that it should get."""
        tally = self.tally
        troubles = (tally.failed, tally.unconnected, tally.unasked, tally.never_sent, self.gave_up)
        return bool(tally.settled) and not any(troubles)

    @property
    def client_was_the_limit(self) -> bool:
        """Whether the client had no time left. An open loop never has: it waits by looking at the clock."""
        return self.busy >= FULL_CORE and self.plan.rate is None

    def latency(self, percentile: float) -> float:
        """Return the latency, in seconds, that so many percent of the right answers did not exceed."""
        return self._percentiles.at(percentile)


class Percentiles:
    """The percentiles of latencies, which are given in microseconds, each with how often it was seen."""

    def __init__(self, latencies: Counter[int]) -> None:
        self._values = sorted(latencies)
        self._ranks = list(accumulate(latencies[value] for value in self._values))

    def at(self, percentile: float) -> float:
        """Return, in seconds, the shortest latency that `percentile` percent do not exceed; 0 without any."""
        if not self._ranks:
            return 0.0
        # Rounding must not ask for one more than there are.
        rank = max(math.ceil(percentile * self._ranks[-1] / 100 - 1e-9), 1)
        return self._values[bisect_left(self._ranks, rank)] / 1e6


def render(result: Result) -> str:
    """Render it for people."""
    tally, seconds = result.tally, max(result.seconds, 1e-9)
    lines = [f"{result.target}, {_manner(result.plan)}, {result.seconds:.1f} s", ""]
    lines += [
        f"sent      {tally.sent:>13,}",
        f"answered  {tally.answered:>13,}  {tally.settled / seconds:,.0f} a second, rejected ones included",
        f"rejected  {tally.rejected:>13,}  as they should be",
        f"failed    {tally.failed.total():>13,}  {_causes(tally.failed)}".rstrip(),
    ]
    if tally.never_sent:
        lines.append(f"never sent{tally.never_sent:>13,}  due, but no connection became free in time")
    if tally.unconnected:
        lines.append(f"no connection {tally.unconnected.total():>9,}  {_causes(tally.unconnected)}")
    if tally.unasked:
        lines.append(f"said unasked  {tally.unasked.total():>9,}  {_causes(tally.unasked)}")
    if result.gave_up:
        lines.append("Given up early: there was no server any more.")
    if tally.settled:
        lines += ["", *_latencies(result), "", *_plot(result)]
    if result.client_was_the_limit:
        lines += [
            "",
            f"The client was the limit: it used {result.busy:.0%} of its core. The server may do more.",
        ]
    if result.balance is not None or result.unread is not None:
        lines += ["", *_balance(result)]
    return "\n".join(lines)


def as_json(result: Result) -> str:
    """Render it for programs; durations are in seconds."""
    tally, balance = result.tally, result.balance
    data: dict[str, Any] = {
        "server": result.target,
        "seconds": result.seconds,
        "interrupted": result.interrupted,
        "sent": tally.sent,
        "answered": tally.answered,
        "rejected": tally.rejected,
        "failed": dict(tally.failed),
        "unconnected": dict(tally.unconnected),
        "unasked": dict(tally.unasked),
        "never_sent": tally.never_sent,
        "gave_up": result.gave_up,
        "connections_opened": tally.opened,
        "rate": tally.settled / max(result.seconds, 1e-9),
        "latency": {f"p{each:g}": result.latency(each) for each in (*PERCENTILES, 100.0)}
        if tally.settled
        else {},
        "client_cpu": result.busy,
        "client_was_the_limit": result.client_was_the_limit,
        "timeline": [
            {"seconds": each.seconds, "settled": each.settled, "failed": each.failed}
            for each in result.timeline
        ],
    }
    if balance is not None:
        counted = balance.counted
        data["server_counted"] = {
            "requests": counted.requests,
            "responses": counted.responses,
            "rejected": counted.rejected,
            "send_errors": counted.send_errors,
            "restarts": balance.restarts,
        }
        data["balance_faults"] = result.faults
    return json.dumps(data, indent=2) + "\n"


def _manner(plan: Plan) -> str:
    words = [f"{plan.connections:,} connection{'s' if plan.connections > 1 else ''}"]
    if plan.visits:
        words.append("each anew for every request" if plan.pipeline == 1 else "each anew every time")
    if plan.pipeline > 1:
        words.append(f"{plan.pipeline} in flight each")
    if plan.rate is not None:
        words.append(f"{plan.rate:,g} requests a second due")
    return ", ".join(words)


def _causes(causes: Counter[str]) -> str:
    return ", ".join(f"{cause} {number:,}" for cause, number in causes.most_common())


def _latencies(result: Result) -> list[str]:
    rows = [f"  p{each:<6g} {format_seconds(result.latency(each)):>9}" for each in PERCENTILES]
    return ["latency", *rows, f"  longest {format_seconds(result.latency(100)):>9}"]


def _plot(result: Result) -> list[str]:
    """Draw latency over percentile; each mark on the axis is as wide as the next."""
    marks = ("0", "50", "90", "99", "99.9", "99.99")
    widest = PLOT_COLUMNS // (len(marks) - 1)
    points = []
    for column in range(PLOT_COLUMNS):
        segment, part = divmod(column, widest)
        low, high = float(marks[segment]), float(marks[segment + 1])
        points.append(result.latency(low + (high - low) * (part + 0.5) / widest))
    largest = max(points) or 1e-6
    rows = []
    for row in range(PLOT_ROWS, 0, -1):
        label = format_seconds(largest * row / PLOT_ROWS) if row % 5 == 0 else ""
        bars = "".join("#" if point > largest * (row - 1) / PLOT_ROWS else " " for point in points)
        rows.append(f"{label:>9} |{bars}".rstrip())
    axis = "".join(mark.ljust(widest) for mark in marks)
    return [*rows, " " * 10 + "+" + "-" * PLOT_COLUMNS, " " * 11 + axis.rstrip() + " %"]


def _balance(result: Result) -> list[str]:
    if result.unread is not None or result.balance is None:
        return [f"The balance is open: {result.unread}"]
    tally, counted = result.tally, result.balance.counted
    headings = ("sent", "answered", "rejected", "send errors", "reset", "failed else")
    resets = sum(number for cause, number in tally.failed.items() if cause.startswith("reset"))
    ours = (tally.sent, tally.answered, tally.rejected, None, resets, tally.failed.total() - resets)
    theirs = (counted.requests, counted.responses, counted.rejected, counted.send_errors, None, None)
    rows = [("balance", *headings), ("client", *map(_number, ours)), ("server", *map(_number, theirs))]
    lines = [
        "  ".join(f"{cell:>12}" if place else f"{cell:8}" for place, cell in enumerate(row)).rstrip()
        for row in rows
    ]
    lost = tally.sent - counted.requests
    missing = [f"{what} {number:,}" for what, number in result.balance.missing(tally).items() if number]
    if result.faults:
        return [*lines, *(f"The balance does not close: {fault}." for fault in result.faults)]
    if times := result.balance.restarts:
        again = "once" if times == 1 else f"{times} times"
        lines.append(
            f"The server was restarted {again}: {lost:,} requests are in no reading of its counters."
        )
        return [
            *lines,
            "They were lost, or counted after the last reading; as far as that, the balance closes.",
        ]
    if missing:
        lines.append(f"Of the failed ones: {', '.join(missing)}.")
    return [*lines, "The balance closes."]


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
