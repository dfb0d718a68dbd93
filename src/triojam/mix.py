"""What a load consists of: kinds of lines, how often each is sent, and what its answer must be."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from triojam.protocol import TIME

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
        """Read what MIX_TAKES describes. Raises ValueError."""
        shares = []
        for part in text.split(","):
            match = re.fullmatch(r"([\x21-\x7e][\x20-\x7e]{0,499}):(\d{1,5})", part.strip())
            weight = int(match[2]) if match else 0
            if match is None or match[1] == "QUIT" or not 0 < weight <= _LARGEST_WEIGHT:
                raise ValueError(f"{part!r} is not what it takes: {MIX_TAKES}")
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
