"""The load generator: many connections in one task, with every answer checked.

Like the server's fast lane, it has its own selector, and Trio waits for this one descriptor: with a task for
each connection, a load would measure Trio's scheduler and not the server.

A closed loop sends the next requests of a connection when it has the answers to the last ones; it sends less
to a server that stalls. An open loop (`rate`) has requests due at even intervals, independent of the server.
Their latency counts from the moment at which they were due, so a stall shows in every request it delayed.
"""

import random
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf

import trio

from triojam.load.measure.checker import AnswerChecker
from triojam.load.measure.clock import ServerClock
from triojam.load.measure.connection import RECEIVE_BYTES, Connection, cause_of
from triojam.load.measure.schedule import Schedule
from triojam.load.measure.tally import Tally
from triojam.load.plan import Plan

TURN_SECONDS = 0.005
# Between the two pieces of a split line: long enough that a server reads them separately.
SPLIT_PAUSE = 0.002
RECONNECT_PAUSE = 0.1
# How long to wait for a server that has answered before and restarts.
LONGEST_OUTAGE = 60.0
SWEEP_SECONDS = 0.05
# The selector's timeout may end this much too late; shorter waits are spent in checkpoints.
TIMER_ERROR = 0.0011
# After an interrupt, how long to wait for the answers to requests in flight.
LAST_ANSWERS_SECONDS = 1.0


class LoadGenerator:
    """Sends the requests of a plan to one socket address, and tallies their outcomes."""

    def __init__(
        self, plan: Plan, address: tuple[str | int, ...], clock: ServerClock, *, chance: random.Random
    ) -> None:
        self.tally = Tally()
        self._now = time.perf_counter
        self.began = self.ended = self._now()
        self.gave_up = self._stopped = False
        self._plan = plan
        self._address = address
        self._clock = clock
        self._kinds = plan.mix.deal(chance)
        self._schedule = Schedule(plan, self.began)
        # Places for connections; None = one that must be opened.
        self._free: deque[Connection | None] = deque([None] * plan.connections)
        self._busy: set[Connection] = set()
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._timer_numbers = count()
        self._outage_since = inf  # the first failed attempt to connect after the last answer
        # Only an open loop has requests left at its end. Each request in flight has its own patience.
        self._cut_at = inf if plan.rate is None else self._schedule.ends + plan.patience

    @property
    def elapsed(self) -> float:
        """How long the load has run, in seconds."""
        return self._now() - self.began

    async def run(self) -> None:
        """Send all requests, and wait for the answers. Call it only once."""
        with selectors.DefaultSelector() as self._selector:
            self._sweep(self.began)
            try:
                while not self._finished(self._now()):
                    pause = self._next_moment() - self._now() - TIMER_ERROR
                    if pause > 0:
                        with trio.move_on_after(pause):
                            await trio.lowlevel.wait_readable(self._selector.fileno())
                    else:
                        await trio.lowlevel.checkpoint()
                    self._turn()
            finally:
                for key in list(self._selector.get_map().values()):
                    self._take_back(key.data)
                    key.data.checker.lost("interrupted" if self._stopped else "no answer in time")
                    self._close(key.data)
                self.ended = self._now()
                self.tally.never_sent = self._schedule.never_sent(self.ended)

    def stop(self) -> None:
        """Send no more requests, and wait only briefly for those in flight."""
        self._stopped = True
        self._schedule.stop(self._now())
        self._cut_at = self._now() + LAST_ANSWERS_SECONDS

    def cut(self) -> None:
        """Do not wait for requests in flight."""
        self._cut_at = self._now()

    def _finished(self, now: float) -> bool:
        patience = LONGEST_OUTAGE if self.tally.settled else self._plan.patience
        self.gave_up = now - self._outage_since > patience
        return self.gave_up or now >= self._cut_at or (not self._busy and self._schedule.over(now))

    def _next_moment(self) -> float:
        """Return when the next timer or request is due."""
        moment = self._timers[0][0]
        return min(moment, self._schedule.next_due(self._now())) if self._free else moment

    def _at(self, moment: float, act: Callable[[float], None]) -> None:
        heappush(self._timers, (moment, next(self._timer_numbers), act))

    def _turn(self) -> None:
        now = self._now()
        ends = now + TURN_SECONDS
        while True:
            self._clock.forget(now)
            while self._timers[0][0] <= now:
                heappop(self._timers)[2](now)
            while self._free and (due := self._schedule.take(self._plan.pipeline, now)):
                self._begin(self._free.popleft(), due, now)
            if now >= ends or not (events := self._selector.select(0)):
                return
            now = self._now()
            for key, mask in events:
                self._on_event(key.data, mask, now)

    def _sweep(self, now: float) -> None:
        """Lose the connections on which nothing has moved for too long."""
        self._at(now + SWEEP_SECONDS, self._sweep)
        for connection in list(self._busy):
            if now - connection.moved > self._plan.patience:
                self._lose(connection, "no answer in time", now)

    def _begin(self, connection: Connection | None, due: list[float], now: float) -> None:
        """Send requests, on a new connection if this one is closed."""
        if connection is None or connection.closed:
            try:
                connection = Connection(self._address, AnswerChecker(self.tally, self._clock))
                self._selector.register(connection.sock, selectors.EVENT_READ, connection)
            except OSError as exc:
                self._schedule.give_back(due)
                self._not_connected(cause_of(exc), now)
                return
        self._busy.add(connection)
        only = self._plan.mix.only
        if only is not None and not only.cut and self._plan.rate is None:
            connection.request_same(only, due, now)
        else:
            connection.request(self._kinds, due, now)
        self._flush(connection, now)

    def _flush(self, connection: Connection, now: float) -> None:
        """Send the next piece, if the connection is still open."""
        if connection.closed:
            return
        was_connected, was_blocked = connection.connected, connection.blocked
        try:
            connection.send(now)
        except OSError as exc:
            self._lose_after_reading(connection, exc, now)
            return
        if connection.connected and not was_connected:
            self.tally.opened += 1
        if connection.blocked != was_blocked:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.blocked else 0)
            self._selector.modify(connection.sock, wanted, connection)
        if connection.outbox and not connection.blocked:
            self._at(now + SPLIT_PAUSE, partial(self._flush, connection))

    def _on_event(self, connection: Connection, mask: int, now: float) -> None:
        if mask & selectors.EVENT_READ:
            try:
                self._take(connection, connection.sock.recv(RECEIVE_BYTES), now)
            except BlockingIOError:
                pass
            except OSError as exc:
                self._take(connection, b"", now, cause_of(exc))
        if mask & selectors.EVENT_WRITE and not connection.closed:
            if code := connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._lose_after_reading(connection, OSError(code, ""), now)
            else:
                self._flush(connection, now)

    def _take(self, connection: Connection, data: bytes, now: float, cause: str = "closed") -> None:
        """Take what has arrived; nothing means that the connection has ended, for this cause."""
        checker = connection.checker
        if not connection.due:  # the server may close an idle connection, after an ERROR line or without
            checker.receive(data, now)
            self._close(connection)
        elif not data:
            self._lose(connection, cause, now)
        elif fault := checker.receive(data, now):
            self._lose(connection, fault, now)
        else:
            self._outage_since = inf
            connection.moved = now
            connection.proven = True
            if not checker.waiting:
                self._done(connection, now)

    def _done(self, connection: Connection, now: float) -> None:
        connection.due = []
        self._busy.remove(connection)
        if self._plan.visits or connection.outbox:  # a bad server can answer what is not sent yet
            self._close(connection)
        if self._plan.think_time:
            self._free_later(connection, now + self._plan.think_time)
        else:
            self._free.append(connection)

    def _lose_after_reading(self, connection: Connection, exc: OSError, now: float) -> None:
        """Lose a connection that broke during a send, after taking the answers that arrived before."""
        while connection.due and not connection.closed:
            try:
                data = connection.sock.recv(RECEIVE_BYTES)
            except OSError:
                data = b""
            self._take(connection, data, now, cause_of(exc))

    def _lose(self, connection: Connection, cause: str, now: float) -> None:
        """Close a connection; its requests have failed, but those that were not sent are due again."""
        self._take_back(connection)
        connection.checker.lost(cause)
        connection.due = []
        self._busy.remove(connection)
        self._close(connection)
        if connection.proven:
            self._free.append(None)
        elif connection.connected:
            self._free_later(None, now + RECONNECT_PAUSE)
        else:
            self._not_connected(cause, now)

    def _not_connected(self, cause: str, now: float) -> None:
        self.tally.unconnected[cause] += 1
        self._outage_since = min(self._outage_since, now)
        self._free_later(None, now + RECONNECT_PAUSE)

    def _free_later(self, connection: Connection | None, moment: float) -> None:
        self._at(moment, lambda _now: self._free.append(connection))

    def _take_back(self, connection: Connection) -> None:
        if unsent := connection.unsent():
            connection.checker.not_sent(len(unsent))
            self._schedule.give_back(unsent)

    def _close(self, connection: Connection) -> None:
        connection.checker.closed()
        self._selector.unregister(connection.sock)
        connection.sock.close()
