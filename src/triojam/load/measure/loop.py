"""The loop of a load: timers, sockets, and what to do next. It waits in its own poller, and uses no Trio.

Every step is short: one connection is served, or a few requests begin. After each step the loop asks for new
events. So it knows when an answer arrived, even while other answers wait to be read.
"""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from triojam.load.measure.connection import Connection
from triojam.load.measure.poller import Poller, monotonic

# A wait that ends this many seconds too late: this process was stopped, or had no processor.
_OVERSLEPT = 0.001


class Work(Protocol):
    """What a loop does."""

    def serve(self, connection: Connection, now: float) -> None:
        """Do what the events of a connection ask for; this is one short step."""

    def begin(self, now: float) -> None:
        """Begin some of the requests that are due."""

    def next_due(self, now: float) -> float:
        """Return when `begin` has something to do next."""

    def finished(self, now: float) -> bool:
        """Whether the loop ends."""

    def waited(self, start: float, end: float) -> None:
        """The loop has waited from `start` to `end`, because there was nothing to do."""


class Loop:
    """Runs the work of a load."""

    def __init__(self) -> None:
        self.poller: Poller[Connection] = Poller()
        self._ready: deque[Connection] = deque()
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()
        self._asked_at = 0.0

    def at(self, moment: float, act: Callable[[float], None]) -> None:
        """Call `act` with the time at or soon after this moment."""
        heappush(self._timers, (moment, next(self._numbers), act))

    def again(self, connection: Connection, event: int) -> None:
        """Serve this connection again, after the others."""
        if not connection.events:
            self._ready.append(connection)
        connection.events |= event

    def run(self, work: Work) -> None:
        """Run until the work is finished; at least one timer must be set at any time."""
        ask, edge = self.poller.ask, self.poller.edge
        now = monotonic()
        while not work.finished(now):
            if self._ready:
                work.serve(self._ready.popleft(), now)
                if edge or not self._ready:
                    self._note(ask())
            else:
                self._wait(work, now)
            now = due = monotonic()
            while self._timers[0][0] <= due:
                heappop(self._timers)[2](now)
                now = monotonic()
            work.begin(now)

    def _wait(self, work: Work, now: float) -> None:
        """Wait for events, a timer, or the next request that is due."""
        moment = min(self._timers[0][0], work.next_due(now))
        if events := self.poller.ask():
            self._note(events)
        elif moment > now:
            events = self.poller.wait(moment - now)
            after = self._asked_at = monotonic()
            if after > moment + _OVERSLEPT:  # this process stood still; events may have arrived early
                self._asked_at = now
                events = events or self.poller.ask()
            work.waited(now, after)
            self._note(events)

    def _note(self, events: list[tuple[Connection, int]]) -> None:
        """Note when events arrived, and for how long each may have been there before."""
        now = monotonic()
        for connection, mask in events:
            if not connection.events:
                self._ready.append(connection)
            connection.events |= mask
            connection.arrived = now
            connection.doubt = now - max(self._asked_at, connection.sent)
        self._asked_at = now
