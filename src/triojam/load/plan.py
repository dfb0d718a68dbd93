"""What a load sends, and when: lines with their weights, and the moments at which requests are due."""

import random
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

from triojam.core.protocol import TIME

SPLIT = "split"
MIX_TAKES = (
    "KIND:WEIGHT with commas between; a kind is 'split' or a line to send, as in TIME:90,HELLO:5,split:5"
)

# Weights are dealt out like cards of a deck of at most this many, so that each share is exact over a deck.
_LARGEST_WEIGHT = 10_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of line.

    line: with its CR LF. cut: after how many bytes it is sent in two pieces, or 0. wants_time: whether the
    right answer is a time; otherwise an ERROR is.
    """

    line: bytes
    cut: int = 0

    @property
    def wants_time(self) -> bool:
        """Whether a JAM is the right answer; otherwise an ERROR is."""
        return self.line.startswith(TIME)


@dataclass(frozen=True)
class Mix:
    """Kinds with their weights."""

    shares: tuple[tuple[Kind, int], ...]

    @classmethod
    def parse(cls, text: str) -> "Mix":
        """Read what MIX_TAKES describes. Raises ValueError that says what is expected."""
        shares = []
        for part in text.split(","):
            match = re.fullmatch(r"([\x21-\x7e][\x20-\x7e]{0,499}):(\d{1,5})", part.strip())
            weight = int(match[2]) if match else 0
            if match is None or match[1] == "QUIT" or not 0 < weight <= _LARGEST_WEIGHT:
                raise ValueError(f"{MIX_TAKES} (see {part!r})")
            name = match[1]
            shares.append((Kind(b"TIME\r\n", 2) if name == SPLIT else Kind(f"{name}\r\n".encode()), weight))
        return cls(tuple(shares))

    @property
    def only(self) -> Kind | None:
        """The one kind, if there is but one."""
        return self.shares[0][0] if len(self.shares) == 1 else None

    def deal(self, chance: random.Random) -> Iterator[Kind]:
        """Yield kinds for ever, shuffled, each as often as its weight says within a deck."""
        deck: Sequence[Kind] = [kind for kind, weight in self.shares for _ in range(weight)]
        while True:
            yield from chance.sample(deck, len(deck))


PLAIN_MIX = Mix(((Kind(b"TIME\r\n"), 1),))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send.

    requests: stop after so many; None = after `seconds`. pipeline: so many at once on each connection.
    visits: connect, ask, close, each time anew. rate: a second, in an open loop; None = closed loop.
    think_time: of each connection between an answer and the next request, in seconds. patience: with a
    connection on which nothing moves, in seconds; then it is given up.
    """

    connections: int = 50
    seconds: float = 10.0
    requests: int | None = None
    pipeline: int = 1
    visits: bool = False
    rate: float | None = None
    think_time: float = 0.0
    patience: float = 5.0
    mix: Mix = PLAIN_MIX


class Schedule:
    """When which requests are due.

    A closed loop ends at its time. An open loop ends when what was due until then is sent, however late.
    """

    def __init__(self, plan: Plan, began: float) -> None:
        self.ends = began + plan.seconds if plan.requests is None else inf
        self._rate = plan.rate
        self._began = began
        self._requests = inf if plan.requests is None else plan.requests
        self._taken = 0  # and not given back
        self._begun = 0  # of an open loop's moments
        self._again: deque[float] = deque()
        self._stopped = False

    def stop(self, now: float) -> None:
        """No more requests from now on."""
        self.ends = min(self.ends, now)
        self._stopped = True

    def over(self, now: float) -> bool:
        """Whether there will be no more requests."""
        return self.next_due(now) == inf

    def next_due(self, now: float) -> float:
        """Return when the next request is due: at once in a closed loop; inf if there is none."""
        if self._stopped or self._taken >= self._requests or (self._rate is None and now >= self.ends):
            return inf
        if self._rate is None or self._again:
            return self._began
        due = self._began + self._begun / self._rate
        return due if due < self.ends else inf

    def take(self, most: int, now: float) -> list[float]:
        """Return when the next requests were due, at most so many, and none that is not due yet."""
        due: list[float] = []
        while len(due) < most and (when := self.next_due(now)) <= now:
            if self._rate is None:
                when = now
            elif self._again:
                when = self._again.popleft()
            else:
                self._begun += 1
            due.append(when)
            self._taken += 1
        return due

    def give_back(self, due: list[float]) -> None:
        """These were not sent."""
        self._taken -= len(due)
        if self._rate is not None:
            self._again.extend(due)

    def never_sent(self, now: float) -> int:
        """Return how many requests of an open loop were due by now, and were not taken."""
        if self._rate is None:
            return 0
        until = min(now, self.ends)
        due = ceil((until - self._began) * self._rate)
        while due and self._began + (due - 1) / self._rate >= until:  # floating point, at the edge
            due -= 1
        return max(0, int(min(due, self._requests)) - self._taken)
