"""Medians over the rounds as a table in markdown, and its place in a page."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clients.cases import Case
from benchmarks.clients.figures import Figures
from benchmarks.rounds import Plan

BEGIN = "<!-- begin: python -m benchmarks clients -->"
END = "<!-- end: python -m benchmarks clients -->"
HEADS = (
    "loop",
    "server",
    "requests/s, C",
    "`load`",
    "p50, C",
    "`load`",
    "`load` ÷ C",
    "p90, C",
    "`load`",
    "p99, C",
    "`load`",
)


@dataclass(frozen=True)
class Round:
    """The two clients' figures of one case in one round."""

    c: Figures
    load: Figures


def _time(us: float) -> str:
    return f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.0f} µs"


def _cells(rounds: Sequence[Round]) -> list[str]:
    def both(value: str) -> tuple[float, float]:
        """Return the medians of a figure: the client's in C, and that of load."""
        return (
            statistics.median(getattr(each.c, value) for each in rounds),
            statistics.median(getattr(each.load, value) for each in rounds),
        )

    ratio = statistics.median(each.load.p50_us / each.c.p50_us for each in rounds)
    return [
        *(f"{rate:,.0f}" for rate in both("rate")),
        *map(_time, both("p50_us")),
        f"{ratio:.2f}",
        *map(_time, (*both("p90_us"), *both("p99_us"))),
    ]


def table(measured: Sequence[tuple[Case, Sequence[Round]]], plan: Plan) -> str:
    """Return a table with a row for each case, and below it what disturbed the figures."""
    lines = [f"| {' | '.join(HEADS)} |", "|:--|:--" + "|--:" * (len(HEADS) - 2) + "|"]
    left_out, failed, disturbed = [], [], 0.0
    for case, rounds in measured:
        name = f"{case.shape.title}, {case.server.title}"
        cells = _cells(rounds) if rounds else ["failed"] + [""] * (len(HEADS) - 3)
        lines.append(f"| {' | '.join([case.shape.title, case.server.title, *cells])} |")
        for each in rounds:
            disturbed = max(disturbed, each.c.others, each.load.others)
        if count := sum(each.load.left_out for each in rounds):
            left_out.append(f"{count:,} ({name})")
        if count := plan.rounds - len(rounds):
            failed.append(f"{count} ({name})")
    lines += ["", f"The figures are medians. Rounds: {plan.rounds}, of {plan.seconds:g} s each."]
    lines.append(f"Other programs used {disturbed:.0%} of the two cores in the most disturbed round.")
    if failed:
        lines.append(f"Rounds without figures, because a request failed: {', '.join(failed)}.")
    if left_out:
        lines.append(f"Requests that `load` was too slow to send, in all rounds: {', '.join(left_out)}.")
    return "\n".join(lines)


def around_table(page: Path) -> tuple[str, str]:
    """Return the text of a page up to its table and from the end of it; exit if it has no markers."""
    before, begin, rest = page.read_text("utf-8").partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end:
        raise SystemExit(f"{page} needs the lines {BEGIN} and {END}")
    return before + begin, end + after
