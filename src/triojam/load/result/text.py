"""The result of a load, as text for people and as JSON for programs."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from triojam.client.render import format_seconds
from triojam.load.plan import Plan
from triojam.load.result import balance
from triojam.load.result.result import Result

PERCENTILES = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99)
PLOT_ROWS, PLOT_COLUMNS = 10, 60


def render(result: Result) -> str:
    """Render the result for people."""
    tally, seconds = result.tally, max(result.seconds, 1e-9)
    lines = [f"{result.target}, {_describe(result.plan)}, {result.seconds:.1f} s", ""]
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
        lines.append("Ended early: no connection could be opened any more.")
    if tally.settled:
        lines += ["", *_latencies(result), "", *_plot(result)]
    if result.client_was_the_limit:
        lines += [
            "",
            f"The client was the limit: it used {result.busy:.0%} of its core. The server may do more.",
        ]
    if result.reconciliation is not None:
        lines += ["", *balance.lines(result)]
    return "\n".join(lines)


def as_json(result: Result) -> str:
    """Render the result for programs; durations are in seconds."""
    tally = result.tally
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
        "latency": {
            f"p{each:g}": result.percentiles.at(each) for each in (*PERCENTILES, 100.0) if tally.settled
        },
        "client_cpu": result.busy,
        "client_was_the_limit": result.client_was_the_limit,
        "timeline": [asdict(each) for each in result.timeline],
    }
    return json.dumps(data | balance.as_json(result), indent=2) + "\n"


def _describe(plan: Plan) -> str:
    words = [f"{plan.connections:,} connection{'s' if plan.connections > 1 else ''}"]
    if plan.visits:
        words.append("a new one for every request" if plan.pipeline == 1 else "a new one every time")
    if plan.pipeline > 1:
        words.append(f"{plan.pipeline} in flight each")
    if plan.rate is not None:
        words.append(f"{plan.rate:,g} requests a second due")
    return ", ".join(words)


def _causes(causes: Counter[str]) -> str:
    return ", ".join(f"{cause} {number:,}" for cause, number in causes.most_common())


def _latencies(result: Result) -> list[str]:
    rows = [f"  p{each:<6g} {format_seconds(result.percentiles.at(each)):>9}" for each in PERCENTILES]
    return ["latency", *rows, f"  longest {format_seconds(result.percentiles.at(100)):>9}"]


def _plot(result: Result) -> list[str]:
    """Draw latency over percentile; the sections between the marks on the axis have equal widths."""
    marks = ("0", "50", "90", "99", "99.9", "99.99")
    widest = PLOT_COLUMNS // (len(marks) - 1)
    points = []
    for column in range(PLOT_COLUMNS):
        segment, part = divmod(column, widest)
        low, high = float(marks[segment]), float(marks[segment + 1])
        points.append(result.percentiles.at(low + (high - low) * (part + 0.5) / widest))
    largest = max(points) or 1e-6
    rows = []
    for row in range(PLOT_ROWS, 0, -1):
        label = format_seconds(largest * row / PLOT_ROWS) if row % 5 == 0 else ""
        bars = "".join("#" if point > largest * (row - 1) / PLOT_ROWS else " " for point in points)
        rows.append(f"{label:>9} |{bars}".rstrip())
    axis = "".join(mark.ljust(widest) for mark in marks)
    return [*rows, " " * 10 + "+" + "-" * PLOT_COLUMNS, " " * 11 + axis.rstrip() + " %"]
