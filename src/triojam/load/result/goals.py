"""Goals that a load must reach, as given to --fail, and which of them a result breaks."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from triojam.load.result.percentiles import needed
from triojam.load.result.result import Result

GOAL_TAKES = (
    "QUANTITY<LIMIT with <, <=, > or >=, such as p99<5ms; the quantities are p50 or any other percentile, "
    "mean and longest (in µs, us, ms or s), failed (a number or %), rate (a second) and answered"
)

_COMPARISONS: dict[str, Callable[[Fraction, Fraction], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# Microseconds in each unit, with both characters that look like µ.
_UNITS = {"us": 1, "\N{MICRO SIGN}s": 1, "\N{GREEK SMALL LETTER MU}s": 1, "ms": 1000, "s": 1_000_000}
_GOAL = re.compile(
    r"\s*(?P<quantity>p(?P<percentile>\d{1,2}(?:\.\d{1,6})?)|mean|longest|failed|rate|answered)"
    r"\s*(?P<comparison>[<>]=?)"
    r"\s*(?P<number>\d{1,12}(?:\.\d{1,9})?)\s*(?P<unit>%|[a-z\u00b5\u03bc]{1,2})?\s*",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal, such as p99<5ms. limit: a latency in microseconds, a share in percent, a number, or a rate.

    percentile: of a latency, with 100 for the longest; None for other quantities and for the mean.
    """

    text: str
    quantity: str
    comparison: str
    limit: Fraction
    unit: str
    percentile: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Goal":
        """Parse what GOAL_TAKES describes. Raises ValueError that says what is expected."""
        match = _GOAL.fullmatch(text)
        if match is None:
            raise ValueError(GOAL_TAKES)
        quantity, unit = match["quantity"], match["unit"] or ""
        percentile = 100.0 if quantity == "longest" else None
        if match["percentile"]:
            percentile = float(match["percentile"])
        is_latency = percentile is not None or quantity == "mean"
        if unit not in (_UNITS if is_latency else ("", "%") if quantity == "failed" else ("",)):
            raise ValueError(GOAL_TAKES)
        limit = Fraction(match["number"]) * _UNITS.get(unit, 1)
        return cls(text.strip(), quantity, match["comparison"], limit, unit, percentile)

    def broken(self, result: Result) -> str | None:
        """Return why a result does not reach this goal; None if it does."""
        if self.percentile is not None or self.quantity == "mean":
            reason = self._broken_latency(result)
        else:
            reason = self._broken_number(result)
        return None if reason is None else f"{self.text}: {reason}"

    def _broken_latency(self, result: Result) -> str | None:
        percentiles = result.percentiles
        if not percentiles.total:
            return "no request was measured"
        if self.percentile is None:
            latency, exact = Fraction(percentiles.mean * 1e6), not percentiles.unanswered
        elif not percentiles.carries(self.percentile):
            return (
                f"it needs at least {needed(self.percentile):,} measured requests, "
                f"there were {percentiles.total:,}"
            )
        else:
            latency = Fraction(round(percentiles.at(self.percentile) * 1e6))
            exact = percentiles.is_exact(self.percentile)
        # A lower bound can reach a goal that asks for more, and no other one.
        if self._holds(latency) and (exact or self.comparison in (">", ">=")):
            return None
        return f"it was {'' if exact else '> '}{_plain(latency / _UNITS[self.unit], 6)} {self.unit}"

    def _broken_number(self, result: Result) -> str | None:
        if self.quantity == "rate":
            rate = Fraction(result.rate)
            return None if self._holds(rate) else f"it was {_plain(rate, 2)}"
        if self.quantity == "answered":
            answered = result.tally.answered
            return None if self._holds(Fraction(answered)) else f"it was {answered:,}"
        failed = result.tally.failed.total() + result.tally.never_sent
        if not result.due:
            return "no request was sent"
        if self.unit != "%":
            return None if self._holds(Fraction(failed)) else f"it was {failed:,}"
        share = Fraction(100 * failed, result.due)
        return None if self._holds(share) else f"it was {float(share):.3g} % ({failed:,} of {result.due:,})"

    def _holds(self, value: Fraction) -> bool:
        return _COMPARISONS[self.comparison](value, self.limit)


def _plain(value: Fraction, digits: int) -> str:
    """Render a number without exponent, rounded to some digits after the point."""
    return f"{round(float(value), digits):,.12g}"


def broken(goals: Sequence[Goal], result: Result) -> list[str]:
    """Return a line for each goal that a result does not reach, with what it was instead.

    failed: requests without a right answer, and those that the server kept the client from sending; those
    that the client itself left out are not among them. rate: right answers a second, rejected ones included.
    """
    return [line for goal in goals if (line := goal.broken(result)) is not None]
