"""The result of a load, as text for people."""

from collections import Counter
from itertools import pairwise

from triojam.client.render import format_seconds
from triojam.load.measure.tally import LATE
from triojam.load.plan import Plan
from triojam.load.result import balance
from triojam.load.result.percentiles import Percentiles
from triojam.load.result.result import BUSY, Result
from triojam.load.result.timeline import format_rate

PLOT_ROWS, PLOT_COLUMNS = 10, 50
# A chart of fewer requests would show little more than the latencies beside it.
FEWEST_PLOTTED = 10
# The client's own time is named from this share of the median latency on.
VISIBLE_SHARE = 0.1
# A client that is busy for a smaller share of its time could have sent more.
IDLE = 0.5
# The least width of a row: its label and its number.
ROW_WIDTH = 23


def render(result: Result, *, cores: int = 1) -> str:
    """Render the result for people. cores: those of this machine, for the advice to use more processes."""
    lines = [f"{result.target}, {_describe(result.plan)}, {_duration(result)}", "", *_rows(result)]
    if result.gave_up:
        lines.append("Ended early: no connection could be opened any more.")
    if result.percentiles.total:
        lines += ["", *_latencies(result.percentiles), *_plot(result.percentiles)]
    elif result.tally.warmed_up:
        lines += ["", "No latency is known: all answers were in the warm-up."]
    if notes := _client_notes(result, cores):
        lines += ["", *notes]
    if result.reconciliation is not None:
        lines += ["", *balance.lines(result)]
    return "\n".join(lines)


def _describe(plan: Plan) -> str:
    words = [f"{plan.connections:,} connection{'s' if plan.connections > 1 else ''}"]
    if plan.workers > 1:
        words.append(f"{plan.workers} workers")
    if plan.visits:
        words.append("a new one for every request" if plan.pipeline == 1 else "a new one every time")
    if plan.pipeline > 1:
        words.append(f"{plan.pipeline} in flight each")
    if plan.rate is not None:
        rates = format_rate(plan.rate)
        if plan.last_rate is not None:
            rates += f" to {format_rate(plan.last_rate)}"
        words.append(f"{rates} requests a second due")
    return ", ".join(words)


def _duration(result: Result) -> str:
    """Describe how long the load was measured, or when it was interrupted."""
    plan, measured = result.plan, _seconds(result.seconds)
    if plan.warm_up:
        measured += f" after a warm-up of {plan.warm_up:g} s"
    if not result.interrupted:
        return measured
    if plan.requests is not None:
        sent = result.tally.sent - result.tally.warmed_up
        at_the_end = sent >= plan.requests
        when = f"{sent:,} of {plan.requests:,} requests and {_seconds(result.seconds)}"
    else:
        planned = plan.warm_up + plan.seconds
        at_the_end = result.ran >= planned
        when = f"{result.ran:.1f} of {planned:g} s"
        if plan.warm_up:
            when += f", with a warm-up of {plan.warm_up:g} s"
    return f"{measured}, interrupted at the end" if at_the_end else f"interrupted after {when}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.9995 else format_seconds(seconds)


def _rows(result: Result) -> list[str]:
    """Render a row for each total. Those that are 0 and say nothing are left out."""
    tally, kinds = result.tally, [kind for kind, _ in result.plan.mix.shares]
    rows = [("sent", tally.sent, "")]
    if tally.answered or any(kind.wants_time for kind in kinds):
        rows.append(("answered", tally.answered, _rate_of(result, tally.answered)))
    if tally.rejected or not all(kind.wants_time for kind in kinds):
        words = ", ".join(filter(None, [_rate_of(result, tally.rejected), "as they should be"]))
        if tally.closed_instead:
            closed = f"{tally.closed_instead:,} by closing the connection without an ERROR line"
            words += f"; of these, {closed}"
        rows.append(("rejected", tally.rejected, words if tally.rejected else ""))
    if tally.warmed_up:
        rows.append(("warmed up", tally.warmed_up, "of these, in the warm-up: not in rates and latencies"))
    rows.append(("failed", tally.failed.total(), _causes(tally.failed)))
    if tally.never_sent:
        rows.append(("never sent", tally.never_sent, "due, but no connection became free in time"))
    if tally.late and not result.could_not_keep_up:
        words = f"by the client, by {LATE * 1e3:g} ms to {_latest(result)}"
        rows.append(("sent late", tally.late, f"{words}; the latencies are without this delay"))
    if tally.unconnected:
        rows.append(("no connection", tally.unconnected.total(), _causes(tally.unconnected)))
    if tally.unasked:
        rows.append(("said unasked", tally.unasked.total(), _causes(tally.unasked)))
    width = max(ROW_WIDTH, *(len(f"{label}  {number:,}") for label, number, _ in rows))
    return [f"{label}{number:>{width - len(label)},}  {words}".rstrip() for label, number, words in rows]


def _rate_of(result: Result, number: int) -> str:
    """Describe how many of these came in a second, without the warm-up."""
    tally = result.tally
    if not number or result.seconds <= 0 or tally.settled == tally.warmed_up:
        return ""
    # The tally does not say how many of each came in the warm-up.
    about = "about " if tally.warmed_up and number < tally.settled else ""
    return f"{about}{format_rate(result.rate * number / tally.settled)} a second"


def _causes(causes: Counter[str]) -> str:
    return ", ".join(f"{cause} {number:,}" for cause, number in causes.most_common())


def _latencies(percentiles: Percentiles) -> list[str]:
    heading = "latency"
    if percentiles.unanswered:
        heading += (
            f"; {percentiles.unanswered:,} of {percentiles.total:,} requests had no answer, "
            "so some values are lower bounds (>)"
        )
    rows = [(f"p{each:g}", each) for each in percentiles.shown] + [("longest", 100.0)]
    return [heading, *(f"  {name:7} {_latency(percentiles, each):>9}" for name, each in rows)]


def _latency(percentiles: Percentiles, percentile: float) -> str:
    more = "" if percentiles.is_exact(percentile) else "> "
    return more + format_seconds(percentiles.at(percentile))


def _plot(percentiles: Percentiles) -> list[str]:
    """Draw latency over percentile, as far as the sample carries it; the last column is the longest.

    The sections between the marks on the axis have equal widths. A lower bound is drawn with another sign.
    """
    if percentiles.total < FEWEST_PLOTTED:
        return []
    marks = [0.0, *(each for each in percentiles.shown if each != 75)]
    widest = PLOT_COLUMNS // (len(marks) - 1)
    columns: list[float | None] = [
        low + (high - low) * (part + 0.5) / widest for low, high in pairwise(marks) for part in range(widest)
    ]
    axis = "".join(f"{mark:g}".ljust(widest) for mark in marks[:-1])
    last = f"{marks[-1]:g} % "
    columns += [marks[-1], *[None] * (len(last) - 1), 100.0]
    heights = [0.0 if each is None else percentiles.at(each) for each in columns]
    signs = ["#" if each is None or percentiles.is_exact(each) else ">" for each in columns]
    largest = heights[-1] or 1e-6
    rows = [""]
    for row in range(PLOT_ROWS, 0, -1):
        label = format_seconds(largest * row / PLOT_ROWS) if row % 5 == 0 else ""
        floor = largest * (row - 1) / PLOT_ROWS
        bars = "".join(sign if height > floor else " " for height, sign in zip(heights, signs, strict=True))
        rows.append(f"{label:>9} |{bars}".rstrip())
    return [*rows, " " * 10 + "+" + "-" * len(columns), " " * 11 + axis + last + "longest"]


def _client_notes(result: Result, cores: int) -> list[str]:
    """Say which part the client itself has in the figures, if that is visible."""
    notes, tally = [], result.tally
    more_workers = "--workers" if result.plan.workers == 1 else "more --workers"
    advice = f"use {more_workers}" if result.plan.workers < cores else ""
    if result.could_not_keep_up:
        missed = []
        if tally.late:
            missed.append(f"sent {_requests(tally.late)} more than {LATE * 1e3:g} ms late")
        if tally.left_out:
            missed.append(f"left out {_requests(tally.left_out)}")
        less = f"ask for less, or {advice}" if advice else "ask for less"
        cause = f"The client could not keep up: {less}."
        if result.busy < IDLE:
            cause = (
                f"The client was busy only {result.busy * 100:.0f} % of the time, but it was delayed: "
                "by other programs, or by the machine."
            )
        notes += [
            cause,
            f"It {' and '.join(missed)}; its longest delay was {_latest(result)}.",
        ]
        if tally.late:
            notes.append("Latencies of late requests count from when they were sent, not from when due.")
    elif result.busy >= BUSY:
        more = f": {advice}" if advice else ""
        used = "its busiest process was" if result.plan.workers > 1 else "it was"
        notes.append(
            f"The client was the limit: {used} busy {result.busy * 100:.0f} % of the time. "
            f"The server may do more{more}."
        )
    if tally.stood_still:
        notes.append(
            f"The client stood still for up to {format_seconds(tally.stood_still)}: it was stopped, or had "
            "no processor. Latencies up to this length may be its own time."
        )
    if result.client_held_requests_back:
        plan = result.plan
        kind = "connections" if plan.pipeline == 1 else "requests"
        notes.append(
            f"Of {plan.connections * plan.pipeline:,} {kind}, {format_rate(result.at_server)} waited "
            "for the server on average, and the others for the client."
        )
    median = result.percentiles.at(50)
    if median > 0 and result.own_seconds > VISIBLE_SHARE * median:
        mean = result.percentiles.mean
        own = format_seconds(min(result.own_seconds, mean))
        notes.append(
            f"The mean latency is {format_seconds(mean)}; up to {own} of it may be the client's own time."
        )
    return notes


def _latest(result: Result) -> str:
    return format_seconds(result.tally.latest)


def _requests(number: int) -> str:
    return f"{number:,} request{'s' if number > 1 else ''}"
