"""Goals that a load must reach, as given to --fail, and which of them a result breaks."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf

from triojam.client.render import format_seconds
from triojam.load.result.percentiles import Percentiles, needed
from triojam.load.result.result import Result
from triojam.load.result.timeline import format_rate

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
        return cls("".join(text.split()), quantity, match["comparison"], limit, unit, percentile)

    @property
    def highest(self) -> float:
        """The limit as a number to compare with `figure`: latencies in seconds."""
        return float(self.limit / 1_000_000 if self.unit in _UNITS else self.limit)

    def figure(self, result: Result) -> float:
        """Return what this goal limits: latencies in seconds, infinite if they are not known."""
        value = self._measure(result)
        if isinstance(value, str) or not self._is_exact(result):
            return inf
        return float(value / 1_000_000 if self.unit in _UNITS else value)

    def shown(self, figure: float) -> str:
        """Render a value of `figure`."""
        if self.unit in _UNITS:
            return format_seconds(figure)
        return f"{figure:.3g} %" if self.unit else format_rate(figure)

    def broken(self, result: Result) -> str | None:
        """Return why a result does not reach this goal; None if it does."""
        value = self._measure(result)
        if isinstance(value, str):
            return f"{self.text}: {value}"
        exact = self._is_exact(result)
        # A lower bound can reach a goal that asks for more, and no other one.
        if _COMPARISONS[self.comparison](value, self.limit) and (exact or self.comparison in (">", ">=")):
            return None
        if self.unit in _UNITS:
            words = f"{'' if exact else '> '}{_plain(value / _UNITS[self.unit])} {self.unit}"
        elif self.unit:
            words = f"{float(value):.3g} % ({_failed(result):,} of {result.due:,})"
        else:
            words = _plain(value)
        return f"{self.text}: it was {words}"

    def _measure(self, result: Result) -> Fraction | str:
        """Return the value to compare with the limit, or why there is none."""
        if self.unit in _UNITS:
            return self._measure_latency(result.percentiles)
        if self.quantity == "rate":
            return Fraction(result.rate)
        if self.quantity == "answered":
            return Fraction(result.tally.answered)
        if not result.due:
            return "no request was sent"
        return Fraction(100 * _failed(result), result.due) if self.unit else Fraction(_failed(result))

    def _measure_latency(self, percentiles: Percentiles) -> Fraction | str:
        if not percentiles.total:
            return "no request was measured"
        if self.percentile is None:
            return Fraction(percentiles.mean * 1e6)
        if percentiles.carries(self.percentile):
            return Fraction(round(percentiles.at(self.percentile) * 1e6))
        count = f"{needed(self.percentile):,} measured requests"
        return f"it needs at least {count}, there were {percentiles.total:,}"

    def _is_exact(self, result: Result) -> bool:
        """Whether a latency is no lower bound."""
        if self.unit not in _UNITS:
            return True
        if self.percentile is None:
            return not result.percentiles.unanswered
        return result.percentiles.is_exact(self.percentile)


def _failed(result: Result) -> int:
    return result.tally.failed.total() + result.tally.never_sent


def _plain(value: Fraction) -> str:
    """Render a number without exponent."""
    return f"{round(float(value), 6):,.15g}"


def broken(goals: Sequence[Goal], result: Result) -> list[str]:
    """Return a line for each goal that a result does not reach, with what it was instead.

    failed: requests without a right answer, and those that the server kept the client from sending; those
    that the client itself left out are not among them. rate: right answers a second, rejected ones included.
    """
    return [line for goal in goals if (line := goal.broken(result)) is not None]
