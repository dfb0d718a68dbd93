"""What a search for the highest rate has found, as text for people and as JSON for programs."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from statistics import median_high
from typing import Any

from triojam.load.result.timeline import format_rate
from triojam.load.search import CONFIRMED, STEP, AtRate, Outcome, Search, Trial, Verdict

CHART_ROWS, CHART_COLUMNS = 10, 60
# Rounded rates are a little more than a step apart.
_NARROW = STEP + 0.01
_HELD, _BROKE, _CLIENT = "o", "x", "?"
ADVICE = "use more --workers, or a machine with less to do"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A search and its words.

    goal: as text, such as p99<5ms. figure: what it limits, such as p99; limit: to which value; shown: renders
    a value of it.
    """

    target: str
    goal: str
    figure: str
    limit: float
    shown: Callable[[float], str]
    search: Search
    interrupted: bool = False

    @property
    def largest_shown(self) -> float:
        """The highest rate that a chart shows; a search that began far too high shows only its end."""
        edge = self.search.above or self.search.answer
        highest = max(trial.rate for trial in self.search.trials)
        return highest if edge is None else min(highest, 2 * edge.rate)


def render(found: Found) -> str:
    """Render what was found for people."""
    number = len(found.search.trials)
    of = f"{number} of {found.search.budget}" if found.interrupted else f"{number}"
    lines = [f"{found.target}, the highest rate within {found.goal}, {of} trial{_s(number)}", ""]
    lines += [_answer(found), *_certainty(found)]
    if found.interrupted:
        lines.append("The search was interrupted.")
    if found.search.trials:
        lines += ["", *_table(found), "", *_chart(found)]
    return "\n".join(lines)


def as_json(found: Found) -> str:
    """Render what was found for programs. An infinite figure is null."""
    search = found.search
    data: dict[str, Any] = {
        "server": found.target,
        "goal": found.goal,
        "figure": found.figure,
        "limit": found.limit,
        "interrupted": found.interrupted,
        "outcome": search.outcome.value,
        "answer": _summary(search.answer),
        "above": _summary(search.above),
        "certain": search.outcome is Outcome.FOUND and not _doubts(search),
        "rates": [_summary(each) for each in search.rates],
        "trials": [
            asdict(trial) | {"figure": trial.figure if isfinite(trial.figure) else None, "held": trial.held}
            for trial in search.trials
        ],
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _summary(at: AtRate | None) -> dict[str, Any] | None:
    if at is None:
        return None
    return {
        "rate": at.rate,
        "held": at.held,
        "judged": at.judged,
        "client_limited": at.client_limited,
        "verdict": at.verdict.value,
    }


def _answer(found: Found) -> str:
    """Return the sentence that gives the rate, or says why there is none."""
    search = found.search
    answer, above = search.answer, search.above
    if answer is None:
        return _no_answer(found)
    words = f"{_requests(answer.rate)} within {found.goal}: held in {_times(answer)} trial{_s(answer.judged)}"
    if above is None:
        return f"At least {words}. The trials ended before a rate broke the goal."
    if above.stopped_by_client:
        return f"At least {words}. At {format_rate(above.rate)}, this client could not keep up: {ADVICE}."
    return f"{words}; {format_rate(above.rate)} held in {_times(above)}."


def _no_answer(found: Found) -> str:
    search = found.search
    if not search.trials:
        return "No trial has ended, so nothing is known."
    lowest = search.rates[0]
    rate, times = _requests(lowest.rate), _times(lowest)
    match search.outcome:
        case Outcome.CLIENT_LIMIT:
            return f"This client could not keep up even with {rate}: {ADVICE}."
        case Outcome.ALL_BROKE:
            return f"Not even {rate} is within {found.goal}: it held in {times} trials."
        case _:
            return f"No rate held within {found.goal} in each of its trials; {rate} held in {times}."


def _certainty(found: Found) -> list[str]:
    """Return sentences that say how sure the answer is."""
    search, lines = found.search, []
    answer, above = search.answer, search.above
    if answer is not None and above is not None and search.outcome is Outcome.FOUND:
        low, high = format_rate(answer.rate), format_rate(above.rate)
        lines.append(
            f"The limit is between {low} and {high} a second, a range of {above.rate / answer.rate - 1:.0%}."
        )
    lines += _doubts(search)
    split = [each for each in search.between if each.disagree]
    if split:
        rates = ", ".join(f"{format_rate(each.rate)} held in {_times(each)}" for each in split)
        lines.append(f"{'Between them' if answer is not None else 'The trials disagree'}: {rates} trials.")
    short = [
        each
        for each in search.rates
        if any(trial.within and not trial.client_limited and not trial.reached for trial in each.trials)
    ]
    if short:
        rates = ", ".join(format_rate(each.rate) for each in short)
        lines.append(f"At {rates} a second, more than a tenth of the requests got no right answer.")
    return lines


def _doubts(search: Search) -> list[str]:
    """Return what the trials leave open about the answer and the rate above it."""
    answer, above = search.answer, search.above
    if answer is None:
        return []
    ends = [each for each in (answer, *search.between, above) if each is not None]
    doubts = [
        f"Not sure: {format_rate(each.rate)} was tried only {_often(each)}."
        for each in ends
        if (each.held < CONFIRMED if each == answer else _is_open(each))
    ]
    if search.outcome is Outcome.FOUND and above is not None and above.rate > answer.rate * _NARROW:
        why = (
            "the trials disagree"
            if any(each.disagree for each in search.between)
            else "there were too few trials"
        )
        doubts.append(f"The range is wide because {why}.")
    return doubts


def _times(at: AtRate) -> str:
    return f"{at.held} of {at.judged}"


def _is_open(at: AtRate) -> bool:
    """Whether a bad trial was not repeated."""
    return at.verdict is Verdict.UNDECIDED and not at.disagree


def _often(at: AtRate) -> str:
    number = at.judged or len(at.trials)
    return "once" if number == 1 else f"{number} times"


def _requests(rate: float) -> str:
    number = format_rate(rate)
    return f"{number} request{'' if number == '1' else 's'} a second"


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _table(found: Found) -> list[str]:
    """Return a row for each rate, with the median figures of its trials, if possible of the judged ones."""
    lines = [f"{'rate':>10}  {'achieved':>10}  {found.figure:>10}  {'held':>8}"]
    for each in found.search.rates:
        trials = [trial for trial in each.trials if not trial.client_limited] or each.trials
        achieved = format_rate(median_high(trial.achieved for trial in trials))
        figure = found.shown(median_high(trial.figure for trial in trials))
        notes = ["<- the answer"] if each == found.search.answer else []
        if each.client_limited:
            notes.append(f"{each.client_limited} not counted: the client was too slow")
        row = f"{format_rate(each.rate):>10}  {achieved:>10}  {figure:>10}  {_times(each):>8}"
        lines.append(f"{row}  {', '.join(notes)}".rstrip())
    return lines


def _chart(found: Found) -> list[str]:
    """Draw a mark for each trial, its figure over its rate; the goal is a line at half height."""
    right = found.largest_shown
    trials = [trial for trial in found.search.trials if trial.rate <= right]
    finite = [trial.figure for trial in trials if isfinite(trial.figure)]
    top = 2 * found.limit if found.limit > 0 else max(finite, default=0.0) or 1.0
    goal = min(max(round(found.limit / top * CHART_ROWS), 1), CHART_ROWS) - 1
    cells = [["-" if row == goal else " "] * CHART_COLUMNS for row in range(CHART_ROWS)]
    for trial in sorted(trials, key=lambda each: "o?x".index(_mark(each))):  # what broke the goal is on top
        row = CHART_ROWS - 1 if trial.figure >= top else max(int(trial.figure / top * CHART_ROWS), 0)
        cells[row][min(int(trial.rate / right * CHART_COLUMNS), CHART_COLUMNS - 1)] = _mark(trial)
    rows = []
    for row in reversed(range(CHART_ROWS)):
        value = found.limit if row == goal else top
        label = found.shown(value) if row in (goal, CHART_ROWS - 1) else ""
        rows.append(f"{label:>9} |{''.join(cells[row])}".rstrip())
    half, full = format_rate(right / 2), format_rate(right)
    axis = f"0{half:>{CHART_COLUMNS // 2}}{full:>{CHART_COLUMNS // 2 - 1}}"
    legend = f"{_HELD} held, {_BROKE} did not hold, {_CLIENT} client too slow"
    return [
        *rows,
        " " * 10 + "+" + "-" * CHART_COLUMNS,
        " " * 11 + axis,
        f"{found.figure} over requests a second: {legend}",
    ]


def _mark(trial: Trial) -> str:
    return _CLIENT if trial.client_limited else _HELD if trial.held else _BROKE
