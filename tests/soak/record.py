"""What is recorded of a soak, for the judge, the picture and the report."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.soak.clients import Tally
from tests.soak.sampling import Sample

# What a process takes to meet everything once: its caches, its allocator's arenas, its libraries' tables.
WARM_UP = 300.0


@dataclass
class Round:
    """What was seen in one round.

    rest: the server while nobody was there. alone: how honest clients fared when they were alone. after: the
    server when they had gone. kept, fresh: how long the good client waited among the hostile, in seconds, on
    the connection that it kept and on new ones.
    """

    rest: Sample
    alone: Tally
    after: Sample
    kept: list[float] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)


@dataclass
class Restarts:
    """What came of the restarts. totals: of all processes, by what they logged at their ends.

    asked_again: requests that crossed a goodbye. moments: seconds since the beginning.
    """

    tally: Tally = field(default_factory=Tally)
    totals: Counter[str] = field(default_factory=Counter)
    asked_again: int = 0
    moments: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass
class Record:
    """A whole run. seconds: how long it was to be. last: the look after it.

    samples: looks at the server while everybody was there. reloads: how many were asked for, by how they
    were to end. reloaded: when. grave: what the server logged as an error. status: of its exit.
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
        """Return every look at the server while nobody was there."""
        return [*(each.rest for each in self.rounds), self.last]

    @property
    def looks(self) -> list[Sample]:
        """Return every look at the server, in order."""
        return sorted([*self.rests, *self.samples], key=lambda look: look.seconds)

    @property
    def latencies(self) -> list[float]:
        """Return how long the good client waited among the hostile, in seconds, the shortest first."""
        return sorted(latency for each in self.rounds for latency in [*each.kept, *each.fresh])

    @property
    def warm(self) -> list[Sample]:
        """Return those after the warm-up, which in a short run is half of it."""
        begins = min(WARM_UP, self.seconds / 2)
        return [rest for rest in self.rests if rest.seconds >= begins]


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the smallest value that this part of them do not exceed; 0 if there are none."""
    return ordered[max(math.ceil(len(ordered) * part), 1) - 1] if ordered else 0.0
