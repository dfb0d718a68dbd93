"""The result of a load: what was measured, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from triojam.load.measure.tally import Tally
from triojam.load.plan import Plan
from triojam.load.reconcile import Reconciliation
from triojam.load.result.percentiles import Percentiles

# At this share of its time, a client has probably limited the load.
BUSY = 0.95
# At this share of requests that it sent late, a client has not kept up.
VISIBLY_LATE = 0.001


@dataclass(frozen=True, slots=True)
class Moment:
    """A part of a load: it ended `seconds` after the start, and began where the one before it ended.

    settled, failed: totals since the start. p50, p99, longest: of the latencies within this part, in seconds;
    0 if none was measured, as in the warm-up.
    """

    seconds: float
    settled: int
    failed: int
    p50: float = 0.0
    p99: float = 0.0
    longest: float = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether there are latencies within this part."""
        return self.longest > 0


@dataclass
class Result:
    """The result of a load.

    seconds: its duration, without the warm-up. busy: the share of its time in which the busiest process of
    the client had something to do. reconciliation: the servers' counters, if they were to be read; unread:
    why the last reading failed. gave_up: whether the load ended early because no connection could be opened
    any more. ran: for how long it ran until it was interrupted, with the warm-up. counted_seconds: those in
    which answers counted for the rate; 0 = all.
    """

    target: str
    plan: Plan
    tally: Tally
    seconds: float
    busy: float
    timeline: Sequence[Moment] = ()
    reconciliation: Reconciliation | None = None
    unread: str | None = None
    interrupted: bool = False
    gave_up: bool = False
    ran: float = 0.0
    counted_seconds: float = 0.0
    percentiles: Percentiles = field(init=False)

    def __post_init__(self) -> None:
        self.percentiles = Percentiles(self.tally.latencies, self.tally.longer)

    @property
    def faults(self) -> list[str]:
        """Why the totals of client and servers do not balance."""
        if self.unread is not None:
            return [self.unread]
        return self.reconciliation.faults(self.tally) if self.reconciliation is not None else []

    @property
    def complete(self) -> bool:
        """Whether every request got a right answer."""
        tally = self.tally
        problems = (tally.failed, tally.unconnected, tally.unasked, tally.never_sent, self.gave_up)
        return tally.settled > 0 and not any(problems)

    @property
    def client_was_the_limit(self) -> bool:
        """Whether the client was too slow for more requests."""
        return self.busy >= BUSY or self.tally.left_out > 0

    @property
    def could_not_keep_up(self) -> bool:
        """Whether the client missed a visible part of the times at which requests were due."""
        return self.tally.left_out > 0 or self.tally.late > VISIBLY_LATE * self.tally.sent

    @property
    def rate(self) -> float:
        """Right answers a second, without the warm-up, and without the wait for the last answers."""
        if self.tally.timely and self.counted_seconds > 0:
            return self.tally.timely / self.counted_seconds
        return (self.tally.settled - self.tally.warmed_up) / max(self.seconds, 1e-9)

    @property
    def at_server(self) -> float:
        """How many requests waited for the server at a time, on average (Little's law)."""
        return self.percentiles.mean * self.percentiles.total / max(self.seconds, 1e-9)

    @property
    def client_held_requests_back(self) -> bool:
        """Whether most of the requests that a closed loop has in flight waited for the client instead."""
        plan, in_flight = self.plan, self.plan.connections * self.plan.pipeline
        if plan.rate is not None or plan.think_time or in_flight == 1 or not self.complete:
            return False
        return self.percentiles.total > 10 * in_flight and self.at_server < in_flight / 2

    @property
    def due(self) -> int:
        """The requests sent, and those that the server kept the client from sending."""
        return self.tally.sent + self.tally.never_sent

    @property
    def own_seconds(self) -> float:
        """How long an answer may have waited for the client, on average."""
        return self.tally.own_seconds / max(self.tally.settled, 1)
