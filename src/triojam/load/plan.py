"""What a load sends: kinds of lines with weights, on how many connections, for how long."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    = closed loop. last_rate: if given, the rate changes evenly from `rate` to this one. think_time: seconds
    between an answer and the next request of a connection. patience: seconds until a request without an
    answer is given up. warm_up: seconds before the others, whose requests are checked, but not measured.
    workers: processes that share the connections.
    """

    connections: int = 50
    seconds: float = 10.0
    requests: int | None = None
    pipeline: int = 1
    visits: bool = False
    rate: float | None = None
    last_rate: float | None = None
    think_time: float = 0.0
    patience: float = 5.0
    mix: Mix = PLAIN_MIX
    warm_up: float = 0.0
    workers: int = 1
