"""Percentiles of latencies that are counted by microsecond."""

import math
from bisect import bisect_left
from collections import Counter
from itertools import accumulate


class Percentiles:
    """Percentiles of latencies, in seconds.

    latencies: the number of answers by latency. longer: the number of requests by how long they had no
    answer. Both in microseconds.
    """

    def __init__(self, latencies: Counter[int], longer: Counter[int] | None = None) -> None:
        self._longer = longer or Counter()
        self._values = sorted(latencies)
        self._ranks = list(accumulate(latencies[value] for value in self._values))

    def at(self, percentile: float) -> float:
        """Return the latency, in seconds, that `percentile` percent do not exceed; 0 if there are none."""
        if not self._ranks:
            return 0.0
        # The small number keeps a rounding error from raising the rank by 1.
        rank = max(math.ceil(percentile * self._ranks[-1] / 100 - 1e-9), 1)
        return self._values[bisect_left(self._ranks, rank)] / 1e6
