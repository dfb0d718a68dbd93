"""The outcomes of the requests of a load, as numbers that can be added up."""

from collections import Counter
from dataclasses import dataclass, field, fields


@dataclass
class Tally:
    """The outcomes of all requests so far.

    failed: requests without a right answer, by cause. unconnected: failed attempts to connect, by cause.
    unasked: lines that arrived while no request was in flight, such as ERROR busy. opened: connections.
    closed_instead: those of `rejected` for which the server closed the connection without an ERROR line.

    latencies: the number of right answers by latency, in microseconds; without those of the warm-up.
    longer: the number of requests by how long they had no answer, in microseconds, when they were given up.
    They are requests without an answer in time (failed, too) and those of `never_sent`.
    warmed_up: the number of right answers to requests of the warm-up. timely: the number of right answers
    that came after the warm-up, and before the end of the time in which requests were due.

    In an open loop, requests are due at certain times. never_sent: were due, but the server kept all
    connections busy. left_out: were due, but the client was too slow. late: were sent more than LATE seconds
    too late by the client. latest: the longest such delay, in seconds.

    stood_still: the longest time, in seconds, in which a process of the client did not run; 0 if it is at
    most STOOD_STILL.

    own_seconds: the sum, over all right answers, of how long each may have waited for the client.
    """

    sent: int = 0
    answered: int = 0
    rejected: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    unconnected: Counter[str] = field(default_factory=Counter)
    unasked: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    closed_instead: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    longer: Counter[int] = field(default_factory=Counter)
    warmed_up: int = 0
    timely: int = 0
    never_sent: int = 0
    left_out: int = 0
    late: int = 0
    latest: float = 0.0
    stood_still: float = 0.0
    own_seconds: float = 0.0

    @property
    def settled(self) -> int:
        """Requests with a right answer."""
        return self.answered + self.rejected

    @property
    def in_flight(self) -> int:
        """Requests without an outcome yet."""
        return self.sent - self.settled - self.failed.total()

    def add(self, other: "Tally") -> None:
        """Add the outcomes of another process."""
        for each in fields(Tally):
            mine, its = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, Counter):
                mine.update(its)
            else:
                setattr(self, each.name, max(mine, its) if each.name in _LONGEST else mine + its)


# A request of an open loop is late if the client sends it this many seconds after it could have.
LATE = 0.001
# A process that does not run for longer than this, in seconds, stands still.
STOOD_STILL = 0.1
# The fields of which the sum is the longest.
_LONGEST = ("latest", "stood_still")
