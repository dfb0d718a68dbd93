"""The command `ask`: several servers at once, a line for each."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from triojam.client.ask import Outcomes
from triojam.client.session import Answer, AskError, Target


def render(targets: Sequence[Target], outcomes: Outcomes) -> str:
    """Render a line for each server, their columns aligned."""
    rows = [
        (str(target), *cells(outcome)) if isinstance(outcome, Answer) else (str(target), _why(outcome))
        for target, outcome in zip(targets, outcomes, strict=True)
    ]
    full = [row for row in rows if len(row) > 2]
    widths = [max(len(row[0]) for row in rows)]
    widths += [max(len(row[column]) for row in full) for column in range(1, 5)] if full else []
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        if len(row) > 2
        else f"{row[0]:{widths[0]}}  {row[1]}"
        for row in rows
    )


def cells(answer: Answer) -> tuple[str, str, str, str]:
    """Render what a server said: time, offset, round trip and address."""
    return (
        answer.time,
        format_offset(answer.offset, answer.bound),
        f"round trip {format_seconds(answer.round_trip)}",
        answer.address,
    )


def as_json(targets: Sequence[Target], outcomes: Outcomes) -> str:
    """Render the same for programs."""
    import json  # noqa: PLC0415  # as above

    return json.dumps(
        [
            {"server": str(target)}
            | (
                asdict(outcome)
                if isinstance(outcome, Answer)
                else {"error": type(outcome).__name__, "reason": _why(outcome)}
            )
            for target, outcome in zip(targets, outcomes, strict=True)
        ],
        indent=2,
    )


def format_offset(offset: float, bound: float) -> str:
    """Render an offset and how far it may be off, with no more digits than are known.

    The bound is rounded up, and has room for the rounding of the offset.
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
            return (
                f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
            )
    return f"{seconds * 1e6:.0f} µs"


def _why(outcome: Answer | AskError | None) -> str:
    return "interrupted" if outcome is None else str(outcome)
