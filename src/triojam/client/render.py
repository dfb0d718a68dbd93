"""Results of clients as text: the lines of `ask`, and the numbers of every client."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict

from triojam.client.ask import Outcome
from triojam.client.session import Answer, AskError, Target
from triojam.client.verdicts.agreement import Verdict

# The bound that one answer gives is not smaller.
ONE_ANSWER = 0.5
# All time zones are whole quarters of an hour apart. In seconds; farther from one, a clock is simply wrong.
QUARTER = 900
NEAR_QUARTER = 10.0
# The widths of a time, an offset and a round trip that are usual, so that lines which come one by one align.
USUAL_WIDTHS = (8, 22, 18)


def render(targets: Sequence[Target], outcomes: Sequence[Outcome]) -> str:
    """Render a line for each server, with aligned columns."""
    rows = [_row(target, outcome) for target, outcome in zip(targets, outcomes, strict=True)]
    answered = [row for row in rows if len(row) > 2]
    widths = [max(map(len, column)) for column in zip(*answered, strict=True)] or [0, 0]
    widths[0] = max(len(row[0]) for row in rows)
    return "\n".join(_aligned(row, widths) for row in rows)


def render_one(targets: Sequence[Target], place: int, outcome: Outcome) -> str:
    """Render the line of one of the servers, before the others are known."""
    widths = (max(len(str(each)) for each in targets), *USUAL_WIDTHS, 0, 0)
    return _aligned(_row(targets[place], outcome), widths)


def _row(target: Target, outcome: Outcome) -> tuple[str, ...]:
    if not isinstance(outcome, Answer):
        return str(target), _why(outcome)
    hint = "another time zone: see --timezone" if _split_zone(outcome.offset)[0] else ""
    return str(target), *cells(outcome), hint


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()


def cells(answer: Answer) -> tuple[str, str, str, str]:
    """Render an answer: time, offset, round trip and address."""
    return (
        answer.time,
        format_offset(answer.offset, answer.bound),
        f"round trip {format_seconds(answer.round_trip)}",
        answer.address,
    )


def describe(targets: Sequence[Target], verdict: Verdict) -> str:
    """Say in a line which servers agree, and which is wrong."""
    asked, groups = (
        verdict.asked,
        [", ".join(str(targets[each]) for each in group) for group in verdict.groups],
    )
    if verdict.agree:
        if not verdict.off:
            return f"all {asked} servers agree: {format_offset(verdict.offset, verdict.bound, words=False)}"
        wrong = (
            f"{targets[place]} is wrong by {format_offset(off, bound, words=False)}"
            for place, (off, bound) in verdict.off.items()
        )
        return "; ".join([f"{len(verdict.agree)} of {asked} servers agree", *wrong])
    size = len(verdict.groups[0])
    if size == 1:
        return f"a tie: no two of the {asked} servers agree"
    if len(groups) > 1:
        return f"a tie: {', and '.join(f'{each} agree' for each in groups)}; no majority"
    return f"no majority: {size} of {asked} servers agree: {groups[0]}"


def as_json(targets: Sequence[Target], outcomes: Sequence[Outcome], verdict: Verdict | None) -> str:
    """Render the outcomes for programs. verdict: which servers agree, if that is known."""
    data: list[dict[str, object]] = []
    for place, (target, outcome) in enumerate(zip(targets, outcomes, strict=True)):
        if isinstance(outcome, Answer):
            data.append({"server": str(target), **asdict(outcome)})
            if verdict is not None:
                off = verdict.off.get(place)
                agrees = place in verdict.agree if verdict.agree else None
                data[-1] |= {"agrees": agrees, "off_by": off[0] if off is not None else None}
        else:
            error = type(outcome).__name__
            data.append({"server": str(target), "error": error, "reason": _why(outcome)})
    return json.dumps(data, indent=2)


def format_offset(offset: float, bound: float, *, words: bool = True) -> str:
    """Render an offset and its bound, with no more digits than are known.

    The bound is rounded up, and includes the rounding of the offset. If one answer cannot tell the clocks
    apart, only the bound is shown, unless `words` is false. Whole quarters of an hour are shown as a time
    zone.
    """
    zone, offset = _split_zone(offset)
    unit, size = ("ms", 1e3) if bound < 0.1 and abs(offset) < 1 else ("s", 1.0)
    digits = max(0 if unit == "ms" else 1, 1 - math.floor(math.log10(max(bound * size, 1e-4))))
    step = 10.0**-digits
    if words and not zone and bound >= ONE_ANSWER and abs(offset) <= bound:
        return f"agrees within ± {math.ceil(bound / step) * step:.{digits}f} s"
    shown = round(offset * size, digits)
    above = math.ceil((bound * size + abs(offset * size - shown)) / step) * step
    return f"{zone}{shown:+z.{digits}f} {unit} ± {above:.{digits}f} {unit}"


def _split_zone(offset: float) -> tuple[str, float]:
    """Return the difference of two time zones in an offset, as in "+5 h 45 min ", and the rest."""
    quarters = round(offset / QUARTER)
    rest = offset - quarters * QUARTER
    if not quarters or abs(rest) > NEAR_QUARTER:
        return "", offset
    hours, minutes = divmod(abs(quarters) * 15, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0)
    return f"{'-' if quarters < 0 else '+'}{' '.join(parts)} ", rest


def format_seconds(seconds: float) -> str:
    """Render a duration with three digits, in the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            number = seconds / size
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def _why(outcome: AskError | None) -> str:
    return "interrupted" if outcome is None else str(outcome)
