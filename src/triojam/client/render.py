"""Results of clients as text: the lines of `ask`, and the numbers of every client."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict

from triojam.client.ask import Outcomes
from triojam.client.session import Answer, AskError, Target


def render(targets: Sequence[Target], outcomes: Outcomes) -> str:
    """Render a line for each server, with aligned columns."""
    rows = [
        (str(target), *(cells(outcome) if isinstance(outcome, Answer) else (_why(outcome),)))
        for target, outcome in zip(targets, outcomes, strict=True)
    ]
    answered = [row for row in rows if len(row) > 2]
    widths = [max(map(len, column)) for column in zip(*answered, strict=True)] or [0, 0]
    widths[0] = max(len(row[0]) for row in rows)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    )


def cells(answer: Answer) -> tuple[str, str, str, str]:
    """Render an answer: time, offset, round trip and address."""
    return (
        answer.time,
        format_offset(answer.offset, answer.bound),
        f"round trip {format_seconds(answer.round_trip)}",
        answer.address,
    )


def as_json(targets: Sequence[Target], outcomes: Outcomes) -> str:
    """Render the outcomes for programs."""
    data = []
    for target, outcome in zip(targets, outcomes, strict=True):
        if isinstance(outcome, Answer):
            data.append({"server": str(target), **asdict(outcome)})
        else:
            error = type(outcome).__name__
            data.append({"server": str(target), "error": error, "reason": _why(outcome)})
    return json.dumps(data, indent=2)


def format_offset(offset: float, bound: float) -> str:
    """Render an offset and its bound, with no more digits than are known.

    The bound is rounded up, and includes the rounding of the offset.
    """
    unit, size = ("ms", 1e3) if bound < 0.1 and abs(offset) < 1 else ("s", 1.0)
    digits = max(0 if unit == "ms" else 1, 1 - math.floor(math.log10(max(bound * size, 1e-4))))
    shown = round(offset * size, digits)
    step = 10.0**-digits
    above = math.ceil((bound * size + abs(offset * size - shown)) / step) * step
    return f"{shown:+z.{digits}f} {unit} ± {above:.{digits}f} {unit}"


def format_seconds(seconds: float) -> str:
    """Render a duration with three digits, in the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            number = seconds / size
            return f"{number:.3g} {unit}" if number < 1000 else f"{number:,.0f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def _why(outcome: AskError | None) -> str:
    return "interrupted" if outcome is None else str(outcome)
