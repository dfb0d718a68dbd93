"""The record of a soak, for the judge, the picture and the report."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.soak.clients import Tally
from tests.soak.sampling import Sample

# In seconds. Meanwhile caches, arenas of the allocator and tables of libraries reach their size.
WARM_UP = 300.0


@dataclass
class Round:
    """One round.

    rest: the server without clients. alone: the honest clients while they were alone. after: the server after
    them. kept, fresh: the waits of the good client among hostile ones, in seconds, on its open connection and
    on new ones.
    """

    rest: Sample
    alone: Tally
    after: Sample
    kept: list[float] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)


@dataclass
class Restarts:
    """The restarts. totals: the sums of the last log lines of all processes.

    sent_again: requests that were on their way when the server closed. moments: seconds since the beginning.
    """

    tally: Tally = field(default_factory=Tally)
    totals: Counter[str] = field(default_factory=Counter)
    sent_again: int = 0
    moments: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass
class Record:
    """A whole run. seconds: its length. last: the sample after it.

    samples: taken while all clients were there. reloads: the requested number by expected result. reloaded:
    their moments. grave: the errors that the server logged. status: its exit status.
    """

    seconds: float
    rounds: list[Round]
    last: Sample
    samples: list[Sample]
    honest: Tally
    reloads: dict[str, int]
    reloaded: list[float]
    grave: list[str]
    status: int | None
    restarts: Restarts

    @property
    def rests(self) -> list[Sample]:
        """Return all samples without clients."""
        return [*(each.rest for each in self.rounds), self.last]

    @property
    def looks(self) -> list[Sample]:
        """Return all samples in order."""
        return sorted([*self.rests, *self.samples], key=lambda look: look.seconds)

    @property
    def latencies(self) -> list[float]:
        """Return the waits of the good client among hostile ones, in seconds, the shortest first."""
        return sorted(latency for each in self.rounds for latency in [*each.kept, *each.fresh])

    @property
    def warm(self) -> list[Sample]:
        """Return the rests after the warm-up, which is at most half of the run."""
        begins = min(WARM_UP, self.seconds / 2)
        return [rest for rest in self.rests if rest.seconds >= begins]


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the smallest value that this part of the values does not exceed; 0 without values."""
    return ordered[max(math.ceil(len(ordered) * part), 1) - 1] if ordered else 0.0
