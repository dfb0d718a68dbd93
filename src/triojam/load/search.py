"""Searches for the highest rate within a goal: which rate to try next, and what the trials say. No I/O.

The rate doubles from the start until it breaks the goal. Then the range between the highest rate that holds
and the lowest that breaks is bisected until it is narrow, and the remaining trials confirm both ends. Every
decision follows from the trials alone, so the search can end after any of them.

Trials are noisy. A rate holds, or breaks the goal, by the majority of its trials; a single bad trial is
repeated first. The answer has held in each of its trials. Trials in which the client could not keep up are
no evidence; if they are the majority, the client is the limit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import sqrt

# The search narrows the range to this ratio, and goes down by it when a rate did not hold every time.
STEP = 1.05
# Trials that must hold at the answer. This many are kept for it while the range is narrowed.
CONFIRMED = 3
# A rate was not reached if fewer requests than this share of it got a right answer.
REACHED = 0.9
UP, DOWN = 2, 4


@dataclass(frozen=True, slots=True)
class Trial:
    """The outcome of a load at one rate.

    rate: requests a second that were due. within: whether the goal was met. achieved: all right answers,
    divided by the seconds in which requests were due. figure: what the goal limits, such as p99 in seconds;
    it may be infinite. client_limited: whether the client itself could not keep up, so that the trial says
    nothing about the server.
    """

    rate: float
    within: bool
    achieved: float
    figure: float
    client_limited: bool = False

    @property
    def reached(self) -> bool:
        """Whether nearly all requests got a right answer. A failed one may have no latency."""
        return self.achieved >= REACHED * self.rate

    @property
    def held(self) -> bool:
        """Whether the server kept the rate within the goal."""
        return self.within and self.reached and not self.client_limited


class Verdict(Enum):
    """What the trials at one rate say."""

    HOLDS = "holds"
    BROKE = "broke"
    CLIENT_LIMITED = "client_limited"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class AtRate:
    """All trials at one rate, at least one."""

    rate: float
    trials: tuple[Trial, ...]

    @property
    def held(self) -> int:
        """The number of trials that held."""
        return sum(trial.held for trial in self.trials)

    @property
    def client_limited(self) -> int:
        """The number of trials in which the client could not keep up."""
        return sum(trial.client_limited for trial in self.trials)

    @property
    def judged(self) -> int:
        """The number of trials that say something about the server."""
        return len(self.trials) - self.client_limited

    @property
    def disagree(self) -> bool:
        """Whether some trials held, and others broke the goal."""
        return 0 < self.held < self.judged

    @property
    def verdict(self) -> Verdict:
        """The verdict of the majority of the judged trials; a single bad trial decides nothing."""
        broke = self.judged - self.held
        if self.client_limited > max(self.judged, 1):
            return Verdict.CLIENT_LIMITED
        if self.held > broke:
            return Verdict.HOLDS
        return Verdict.BROKE if broke > max(self.held, 1) else Verdict.UNDECIDED

    @property
    def stopped_by_client(self) -> bool:
        """Whether the rate does not hold because of the client."""
        return self.verdict is Verdict.CLIENT_LIMITED or not self.judged

    @property
    def holds_always(self) -> bool:
        """Whether the rate holds, and no trial broke the goal."""
        return self.verdict is Verdict.HOLDS and self.held == self.judged


class Outcome(Enum):
    """How a search ended."""

    FOUND = "found"
    CLIENT_LIMIT = "client_limit"  # the client cannot send at a rate that the server may hold
    NO_LIMIT = "no_limit"  # the trials ended before a rate broke the goal
    ALL_BROKE = "all_broke"
    UNCLEAR = "unclear"  # no rate held every time
    NOTHING = "nothing"  # no trial ended


class Search:
    """A search: ask `next_rate`, run a trial at this rate, `record` it, until there is no next rate.

    start: the first rate. budget: the largest number of trials. lowest: the lowest rate worth a trial.
    """

    def __init__(self, start: float, *, budget: int = 20, lowest: float = 1.0) -> None:
        self.budget = budget
        self._start = start
        self._lowest = lowest
        self.trials: list[Trial] = []

    def record(self, trial: Trial) -> None:
        """Take the outcome of a trial."""
        self.trials.append(trial)

    @property
    def rates(self) -> list[AtRate]:
        """The trials by rate, the lowest first."""
        return [
            AtRate(rate, tuple(trial for trial in self.trials if trial.rate == rate))
            for rate in sorted({trial.rate for trial in self.trials})
        ]

    @property
    def answer(self) -> AtRate | None:
        """The highest rate that held in each of its trials, below every rate that does not hold."""
        return _last(self._below_ceiling, lambda each: each.holds_always)

    @property
    def above(self) -> AtRate | None:
        """The lowest rate that does not hold; if there is none, the lowest undecided one."""
        return self._ceiling or self._undecided

    @property
    def between(self) -> list[AtRate]:
        """The rates between the answer and `above`: at none of them did every trial hold."""
        floor = self.answer.rate if self.answer is not None else 0.0
        return [each for each in self._below_ceiling if each.rate > floor and each != self.above]

    @property
    def outcome(self) -> Outcome:
        """What is known after the trials so far."""
        if not self.trials:
            return Outcome.NOTHING
        limit = self.above if self.answer is not None else self.rates[0]
        if limit is None:
            return Outcome.NO_LIMIT
        if limit.stopped_by_client:
            return Outcome.CLIENT_LIMIT
        if self.answer is not None:
            return Outcome.FOUND
        return Outcome.ALL_BROKE if limit.verdict is Verdict.BROKE else Outcome.UNCLEAR

    def next_rate(self) -> float | None:
        """Return the rate of the next trial, or None at the end."""
        left = self.budget - len(self.trials)
        if left <= 0:
            return None
        if not self.trials:
            return self._start
        return self._explore(left) or self._confirm(left)

    @property
    def _ceiling(self) -> AtRate | None:
        """The lowest rate that does not hold. What held above it was luck."""
        bad = (Verdict.BROKE, Verdict.CLIENT_LIMITED)
        return _first(self.rates, lambda each: each.verdict in bad)

    @property
    def _undecided(self) -> AtRate | None:
        return _first(self._below_ceiling, lambda each: each.verdict is Verdict.UNDECIDED)

    @property
    def _below_ceiling(self) -> list[AtRate]:
        ceiling = self._ceiling
        return self.rates if ceiling is None else [each for each in self.rates if each.rate < ceiling.rate]

    def _explore(self, left: int) -> float | None:
        """Return the rate that narrows the range, or None if it is narrow or the trials become few."""
        if self.answer is not None and left <= CONFIRMED:
            return None
        below, ceiling = self._below_ceiling, self._ceiling
        if self._undecided is not None:
            return self._undecided.rate
        if ceiling is None:
            return _rounded(below[-1].rate * UP)
        if not below:
            return max(_rounded(ceiling.rate / DOWN), self._lowest) if ceiling.rate > self._lowest else None
        if ceiling.rate > below[-1].rate * STEP:
            return _rounded(sqrt(below[-1].rate * ceiling.rate))
        return None

    def _confirm(self, left: int) -> float | None:
        """Return the rate that makes the answer more certain, or None if it is certain."""
        answer = self.answer
        if lower := self._step_down():
            return lower
        if answer is None:
            return None
        above = self._undecided or self._ceiling
        wanting = [answer.rate] if answer.held < CONFIRMED else []
        if above is not None and len(above.trials) < CONFIRMED:
            # With trials to spare, it comes first: it may turn out to hold after all.
            wanting.insert(0 if left > CONFIRMED else len(wanting), above.rate)
        if wanting:
            return wanting[0]
        if above is None or left <= CONFIRMED:  # too few for another answer if this one broke the goal now
            return None
        return min(answer, above, key=lambda each: len(each.trials)).rate

    def _step_down(self) -> float | None:
        """Return a rate just below the lowest rate above the answer at which the trials disagree."""
        floor = self.answer.rate if self.answer is not None else 0.0
        doubtful = _first(self._below_ceiling, lambda each: each.rate > floor)
        if doubtful is None or not doubtful.held:
            return None
        lower = max(_rounded(doubtful.rate / STEP), self._lowest)
        return lower if floor < lower < doubtful.rate else None


def _first(rates: list[AtRate], wanted: Callable[[AtRate], bool]) -> AtRate | None:
    return next((each for each in rates if wanted(each)), None)


def _last(rates: list[AtRate], wanted: Callable[[AtRate], bool]) -> AtRate | None:
    return _first(rates[::-1], wanted)


def _rounded(rate: float) -> float:
    """Round to three digits, which people can read and repeat."""
    return float(f"{rate:.3g}")
