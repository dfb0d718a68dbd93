"""Percentiles of latencies that are counted by microsecond."""

import math
from bisect import bisect_left
from collections import Counter
from functools import cached_property
from itertools import accumulate

# Those that are shown, if the sample carries them.
SHOWN = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99)


class Percentiles:
    """Percentiles of latencies, in seconds.

    latencies: the number of answers by latency. longer: the number of requests by how long they had no
    answer. Both in microseconds. A request without an answer counts with the time that it waited, which is a
    lower bound of its latency.
    """

    def __init__(self, latencies: Counter[int], longer: Counter[int] | None = None) -> None:
        self._counts = latencies + longer if longer else latencies
        self._values = sorted(self._counts)
        self._ranks = list(accumulate(map(self._counts.__getitem__, self._values)))
        self._answered = list(accumulate(map(latencies.__getitem__, self._values))) if longer else self._ranks
        self.total = self._ranks[-1] if self._ranks else 0
        self.unanswered = longer.total() if longer else 0

    def at(self, percentile: float) -> float:
        """Return the latency, in seconds, that `percentile` percent do not exceed; 0 if there are none."""
        return self._values[self._place(percentile)[0]] / 1e6 if self.total else 0.0

    def is_exact(self, percentile: float) -> bool:
        """Whether `at` is the latency, however long the requests without an answer would have taken.

        Otherwise, it is a lower bound.
        """
        if not self.total:
            return True
        place, rank = self._place(percentile)
        return self._answered[place] >= rank

    def up_to(self, percentile: float) -> int:
        """Return how many requests have a latency, or its lower bound, of at most `at`."""
        return self._ranks[self._place(percentile)[0]] if self.total else 0

    def carries(self, percentile: float) -> bool:
        """Whether there are enough requests for this percentile."""
        return self.total >= needed(percentile)

    @property
    def shown(self) -> list[float]:
        """The percentiles to show: those of SHOWN that the sample carries."""
        return [each for each in SHOWN if self.carries(each)]

    @cached_property
    def mean(self) -> float:
        """The mean, in seconds; a lower bound if a request had no answer."""
        return sum(value * times for value, times in self._counts.items()) / max(self.total, 1) / 1e6

    @cached_property
    def deviation(self) -> float:
        """The standard deviation, in seconds."""
        squares = sum((value / 1e6 - self.mean) ** 2 * times for value, times in self._counts.items())
        return math.sqrt(squares / max(self.total, 1))

    @property
    def distinct(self) -> int:
        """The number of distinct values."""
        return len(self._values)

    def _place(self, percentile: float) -> tuple[int, int]:
        """Return the index of a percentile's value, and its rank, which begins with 1."""
        # The small number keeps a rounding error from raising the rank by 1.
        rank = max(math.ceil(percentile * self.total / 100 - 1e-9), 1)
        return bisect_left(self._ranks, rank), rank


def needed(percentile: float) -> int:
    """Return how many requests carry a percentile: at least one must be beyond it. 100 is the longest."""
    return 1 if percentile >= 100 else math.ceil(100 / (100 - percentile) - 1e-6)
