"""The clock of a server, as a load knows it: which second an answer may show."""

import time
from collections.abc import Callable
from typing import Self

from triojam.client.time_of_day import DAY, fold, second_of_day

# Up to this many equal answers in one read need no parsing.
_MOST_EQUAL = 64
# An answer may differ by one second: clocks are slewed, and one answer shows the offset to half a second.
LEAST_SLACK = 1.0


class ServerClock:
    """What a server's clock shows, by this machine's clock and the offset between the two.

    second_of_day: returns the second of the server's day at a time of `time.perf_counter`. slack: how many
    seconds an answer may differ from that.
    """

    def __init__(self, second_of_day: Callable[[float], float], slack: float = LEAST_SLACK) -> None:
        self._second_of_day = second_of_day
        self._slack = slack
        self.usual: dict[bytes, int] = {}  # the current answer, repeated: the bytes, and how many answers
        self._usual_until = 0.0

    @classmethod
    def of_this_machine(cls, offset: float = 0.0, bound: float = 0.0) -> Self:
        """Make the clock of a server in this machine's time zone that is `offset` ± `bound` seconds ahead."""
        ahead = second_of_day(time.time(), None) + offset - time.perf_counter()
        return cls(lambda now: (now + ahead) % DAY, max(LEAST_SLACK, bound + LEAST_SLACK / 2))

    def fits(self, second: int, asked: float, now: float) -> bool:
        """Whether the clock may have shown this second between the two times."""
        first = int((self._second_of_day(asked) - self._slack) // 1)
        last = int((self._second_of_day(max(asked, now)) + self._slack) // 1)
        return last - first >= DAY or (second - first) % DAY <= (last - first) % DAY

    def see(self, line: bytes, second: int, now: float) -> None:
        """Expect this answer from now on, as long as it is right."""
        ahead = fold(second + 1 + self._slack - self._second_of_day(now))
        if line not in self.usual:
            self.usual = {line * times: times for times in range(1, _MOST_EQUAL + 1)}
        self._usual_until = now + ahead

    def forget(self, now: float) -> None:
        """Forget the expected answer when it is out of date."""
        if now >= self._usual_until:
            self.usual = {}
