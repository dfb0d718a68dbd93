"""The result of a load for programs: JSON, CSV, and the file that the plotters of HdrHistogram read."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from triojam.load.result import balance
from triojam.load.result.percentiles import Percentiles
from triojam.load.result.result import Moment, Result
from triojam.load.result.timeline import parts, rate_answered, rate_due

COLUMNS = ("seconds", "rate_due", "answered_per_second", "failed", "p50_ms", "p99_ms", "longest_ms")
# In an .hgrm file, the distance to 100 % is halved again and again, each time in this many steps.
STEPS_A_HALF = 5


def as_json(result: Result) -> str:
    """Render the result as JSON; durations are in seconds, rates without the warm-up."""
    tally, percentiles = result.tally, result.percentiles
    shown = [*percentiles.shown, 100.0] if percentiles.total else []
    data: dict[str, Any] = {
        "server": result.target,
        "seconds": result.seconds,
        "interrupted": result.interrupted,
        "sent": tally.sent,
        "answered": tally.answered,
        "rejected": tally.rejected,
        "closed_instead": tally.closed_instead,
        "warmed_up": tally.warmed_up,
        "failed": dict(tally.failed),
        "unconnected": dict(tally.unconnected),
        "unasked": dict(tally.unasked),
        "never_sent": tally.never_sent,
        "gave_up": result.gave_up,
        "connections_opened": tally.opened,
        "rate": result.rate,
        "latency": {f"p{each:g}": percentiles.at(each) for each in shown},
        "latency_lower_bounds": [f"p{each:g}" for each in shown if not percentiles.is_exact(each)],
        "latency_requests": percentiles.total,
        "latency_unanswered": percentiles.unanswered,
        "client_cpu": result.busy,
        "client_was_the_limit": result.client_was_the_limit,
        "client_seconds_per_answer": result.own_seconds,
        "requests_at_server": result.at_server,
        "client_left_out": tally.left_out,
        "client_late": tally.late,
        "client_latest": tally.latest,
        "timeline": [_moment(each) for each in result.timeline],
    }
    data |= balance.as_json(result)
    return json.dumps(data, indent=2) + "\n"


def as_csv(result: Result) -> str:
    """Render the timeline as CSV: a row for each part of the load, with empty cells for what there is not."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for before, now in parts(result.timeline):
        due = rate_due(result.plan, before, now)
        shown_due = "" if due is None else f"{due:.2f}"
        rates = [f"{now.seconds:.3f}", shown_due, f"{rate_answered(before, now):.2f}"]
        table.writerow([*rates, now.failed - before.failed, *_latencies(now)])
    return text.getvalue()


def as_hgrm(result: Result) -> str:
    """Render the latencies, in milliseconds, as the percentile distribution of HdrHistogram.

    If requests had no answer, comments at its end say from where on values are lower bounds.
    """
    percentiles = result.percentiles
    lines = [
        "{:>12} {:>12} {:>12} {:>12}".format("Value", "Percentile", "TotalCount", "1/(1-Percentile)"),
        "",
    ]
    for percentile in _steps(percentiles):
        share = percentile / 100
        beyond = 1 / (1 - share) if share < 1 else float("inf")
        value, count = percentiles.at(percentile) * 1e3, percentiles.up_to(percentile)
        lines.append(f"{value:12.3f} {share:12.6f} {count:12d} {beyond:12.2f}")
    mean, deviation, longest = percentiles.mean, percentiles.deviation, percentiles.at(100)
    lines += [
        f"#[Mean    = {mean * 1e3:12.3f}, StdDeviation   = {deviation * 1e3:12.3f}]",
        f"#[Max     = {longest * 1e3:12.3f}, Total count    = {percentiles.total:12d}]",
        f"#[Buckets = {1:12d}, SubBuckets     = {percentiles.distinct:12d}]",
    ]
    if percentiles.unanswered:
        first = next(each for each in _steps(percentiles) if not percentiles.is_exact(each))
        lines += [
            f"# {percentiles.unanswered} of these requests had no answer: their time without one counts.",
            f"# From the percentile {first / 100:.6f} on, values may be lower bounds.",
        ]
    return "\n".join(lines) + "\n"


def _moment(moment: Moment) -> dict[str, Any]:
    unknown = {} if moment.is_measured else dict.fromkeys(("p50", "p99", "longest"))
    return asdict(moment) | unknown


def _latencies(now: Moment) -> list[str]:
    if not now.is_measured:
        return ["", "", ""]
    return [f"{seconds * 1e3:.3f}" for seconds in (now.p50, now.p99, now.longest)]


def _steps(percentiles: Percentiles) -> Iterator[float]:
    """Yield percentiles that come ever closer to 100, until one of them reaches the longest; then 100."""
    half = 0
    while percentiles.total:
        for step in range(STEPS_A_HALF):
            percentile = 100 - 100 / 2**half * (1 - step / STEPS_A_HALF / 2)
            yield percentile
            if percentiles.up_to(percentile) == percentiles.total:
                yield 100.0
                return
        half += 1
