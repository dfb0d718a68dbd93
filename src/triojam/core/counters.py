"""The counters: plain integers that the serving path adds to. They become samples only at a scrape.

The identity: whenever nothing is in flight, requests = responses + rejected + send errors. After every
connection has ended, the sum of the disconnects is the number of connections that were not refused. The
server's own connections, for its watchdog, are in `self_checks` only.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TypeVar

from triojam.core.reasons import (
    AcceptError,
    AuthFailure,
    Disconnect,
    HandoverCause,
    Refusal,
    Rejection,
    Reload,
    SelfCheck,
    SendError,
    WebRejection,
)

Label = TypeVar("Label", bound=StrEnum)

# An idle machine answers within about 50 µs; a second is a stall.
REQUEST_BUCKETS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
# A line in pieces takes from two segments on a LAN to more than the line deadline.
RECEIVE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# From timer noise to a blocked loop.
LAG_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Histogram:
    """Observations in seconds, by bucket.

    counts: for each bound, the observations up to it and above the previous bound; the last count is for
    observations above all bounds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Add an observation that was made `times` times."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum += seconds * times

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self.counts)


def _zeros(labels: Iterable[Label]) -> dict[Label, int]:
    return dict.fromkeys(labels, 0)


class Counters:
    """The counters of one server, and the gauges that the server sets."""

    __slots__ = (
        "accept_errors",
        "auth_failures",
        "clock_steps",
        "config_reloads",
        "connections",
        "connections_limit",
        "connections_open",
        "connections_rejected",
        "disconnects",
        "draining",
        "handovers",
        "internal_errors",
        "loop_lag",
        "ready",
        "rejected",
        "request_duration",
        "request_receive",
        "requests",
        "responses",
        "self_checks",
        "send_errors",
        "web_rejected",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.responses = 0
        self.rejected = _zeros(Rejection)
        self.send_errors = _zeros(SendError)
        self.connections = 0
        self.connections_open = 0
        self.connections_limit = 0
        self.connections_rejected = _zeros(Refusal)
        self.disconnects = _zeros(Disconnect)
        self.accept_errors = _zeros(AcceptError)
        self.handovers = _zeros(HandoverCause)
        self.internal_errors = 0
        self.self_checks = _zeros(SelfCheck)
        self.auth_failures = _zeros(AuthFailure)
        self.web_rejected = _zeros(WebRejection)
        self.clock_steps = 0
        self.config_reloads = _zeros(Reload)
        self.ready = False
        self.draining = False
        self.request_duration = Histogram(REQUEST_BUCKETS)
        self.request_receive = Histogram(RECEIVE_BUCKETS)
        self.loop_lag = Histogram(LAG_BUCKETS)

    def totals(self) -> dict[str, int]:
        """Return the most important totals, by name."""
        return {
            "requests": self.requests,
            "responses": self.responses,
            "rejected": sum(self.rejected.values()),
            "send_errors": sum(self.send_errors.values()),
            "connections": self.connections_open,
        }

    @property
    def unaccounted(self) -> int:
        """The requests in flight."""
        totals = self.totals()
        return totals["requests"] - totals["responses"] - totals["rejected"] - totals["send_errors"]

    def opened(self) -> None:
        """Count a connection that was admitted; `closed` must be called for it once."""
        self.connections += 1
        self.connections_open += 1

    def refused(self, reason: Refusal) -> None:
        """Count a connection that was accepted and refused."""
        self.connections += 1
        self.connections_rejected[reason] += 1

    def turned_away(self, reason: Refusal) -> None:
        """Count an open connection as refused: its client became known after it was accepted."""
        self.connections_open -= 1
        self.connections_rejected[reason] += 1

    def closed(self, reason: Disconnect) -> None:
        """Count the end of an admitted connection."""
        self.connections_open -= 1
        self.disconnects[reason] += 1
