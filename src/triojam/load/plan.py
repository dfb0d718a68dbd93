"""What a load sends and when: kinds of lines with weights, and the times at which requests are due."""

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

# A deck has as many cards of each kind as its weight, and is dealt in random order.
_LARGEST_WEIGHT = 10_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of line. line: with CR LF. cut: the length of its first piece; 0 = it is sent in one piece."""

    line: bytes
    cut: int = 0

    @property
    def wants_time(self) -> bool:
        """Whether the right answer is a time; otherwise it is an ERROR."""
        return self.line.startswith(TIME)


@dataclass(frozen=True)
class Mix:
    """Kinds of lines with their weights."""

    shares: tuple[tuple[Kind, int], ...]

    @classmethod
    def parse(cls, text: str) -> "Mix":
        """Parse what MIX_TAKES describes. Raises ValueError that says what is expected."""
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
        """The kind, if there is only one."""
        return self.shares[0][0] if len(self.shares) == 1 else None

    def deal(self, chance: random.Random) -> Iterator[Kind]:
        """Yield kinds without end, from shuffled decks with as many cards of each kind as its weight."""
        deck: Sequence[Kind] = [kind for kind, weight in self.shares for _ in range(weight)]
        while True:
            yield from chance.sample(deck, len(deck))


PLAIN_MIX = Mix(((Kind(b"TIME\r\n"), 1),))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send.

    requests: how many to send; None = send for `seconds`. pipeline: requests sent together on a connection.
    visits: open a new connection for each request or pipeline. rate: requests a second in an open loop; None
    = closed loop. think_time: seconds between an answer and the next request of a connection. patience:
    seconds until a connection on which nothing moves is given up.
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
    """When requests are due.

    A closed loop ends at `ends`. An open loop ends when all requests that were due by then are sent.
    """

    def __init__(self, plan: Plan, began: float) -> None:
        self.ends = began + plan.seconds if plan.requests is None else inf
        self._rate = plan.rate
        self._began = began
        self._requests = inf if plan.requests is None else plan.requests
        self._taken = 0  # without those given back
        self._begun = 0  # how many times of an open loop were taken
        self._again: deque[float] = deque()
        self._stopped = False

    def stop(self, now: float) -> None:
        """End the schedule: no more requests are due."""
        self.ends = min(self.ends, now)
        self._stopped = True

    def over(self, now: float) -> bool:
        """Whether no more requests will be due."""
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
        """Take up to `most` requests that are due by now; return when each was due."""
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
        """Return requests that were taken, but not sent."""
        self._taken -= len(due)
        if self._rate is not None:
            self._again.extend(due)

    def never_sent(self, now: float) -> int:
        """Return how many requests of an open loop were due by now, but not taken."""
        if self._rate is None:
            return 0
        until = min(now, self.ends)
        due = ceil((until - self._began) * self._rate)
        while due and self._began + (due - 1) / self._rate >= until:  # a rounding error
            due -= 1
        return max(0, int(min(due, self._requests)) - self._taken)
