"""A load generator: many connections, one task, and every answer checked.

Like the server's fast lane it keeps a selector of its own and lets Trio wait for that one descriptor, since
a task a connection would measure Trio's scheduler rather than the server.

A closed loop sends the next requests of a connection when the ones before are answered; a server that
stalls is then asked less. An open loop (`rate`) has requests due at even times, whatever the server does,
and counts their latency from when they were due, so that a stall shows in every request it held up.
"""

import errno
import os
import random
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from math import inf

import trio

from triojam.load.checker import AnswerChecker, ServerClock, Tally
from triojam.load.plan import Plan, Schedule

RECEIVE_BYTES = 64 * 1024
TURN_SECONDS = 0.005
# Between the two pieces of a split line: long enough that a server reads them one by one.
SPLIT_PAUSE = 0.002
RECONNECT_PAUSE = 0.1
# A server that has answered before is waited for so long while it is restarted.
LONGEST_OUTAGE = 60.0
SWEEP_SECONDS = 0.05
# A timer of the selector's may be late by this much; what is nearer is waited for by giving way.
TIMER_ERROR = 0.0011
# Whoever is interrupted waits this long for what is under way.
LAST_ANSWERS_SECONDS = 1.0


class _Connection:
    """A place for a connection, which may be open or not.

    due: when the requests under way were due. moved: when something last moved on it. midline: whether the
    last byte that was sent was in the middle of a line. proven: whether it has had an answer. blocked:
    whether the kernel has no room for more.
    """

    __slots__ = ("blocked", "connected", "due", "exchange", "midline", "moved", "outbox", "proven", "sock")

    def __init__(self, exchange: AnswerChecker) -> None:
        self.exchange = exchange
        self.sock: socket.socket | None = None
        self.connected = self.midline = self.proven = self.blocked = False
        self.outbox: deque[bytes] = deque()
        self.due: list[float] = []
        self.moved = 0.0

    def unsent(self) -> int:
        """How many lines are to be sent of which no byte was."""
        return sum(piece.count(b"\n") for piece in self.outbox) - self.midline


class LoadGenerator:
    """Sends what a plan says to one socket address, and tallies what becomes of it."""

    def __init__(
        self,
        plan: Plan,
        address: tuple[str | int, ...],
        clock: ServerClock,
        *,
        chance: random.Random,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tally = Tally()
        self.began = self.ended = now()
        self.gave_up = self._stopped = False
        self._plan = plan
        self._address = address
        self._family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
        self._clock = clock
        self._now = now
        self._kinds = plan.mix.deal(chance)
        self._schedule = Schedule(plan, self.began)
        self._connections = [_Connection(AnswerChecker(self.tally, clock)) for _ in range(plan.connections)]
        self._free = deque(self._connections)
        self._resting: deque[tuple[float, _Connection]] = deque()
        self._lost: deque[tuple[float, _Connection]] = deque()
        self._held: deque[tuple[float, _Connection, socket.socket]] = deque()
        self._next_sweep = 0.0
        self._alone_since = inf  # since when there has been neither a connection nor an answer
        # Only an open loop has a backlog then; what is under way is given up when nothing moves on it.
        self._cut_at = inf if plan.rate is None else self._schedule.ends + plan.patience

    @property
    def elapsed(self) -> float:
        """How long it has run, in seconds."""
        return self._now() - self.began

    async def run(self) -> None:
        """Send it all, and wait for the answers. To be called once."""
        with selectors.DefaultSelector() as self._selector:
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
                for connection in self._connections:
                    self._take_back(connection)
                    connection.exchange.lost("interrupted" if self._stopped else "no answer in time")
                    self._close(connection)
                self.ended = self._now()
                self.tally.never_sent = self._schedule.never_sent(self.ended)

    def stop(self) -> None:
        """Send nothing more, and wait only briefly for what is under way."""
        self._stopped = True
        self._schedule.stop(self._now())
        self._cut_at = self._now() + LAST_ANSWERS_SECONDS

    def cut(self) -> None:
        """Do not even wait."""
        self._cut_at = self._now()

    def _finished(self, now: float) -> bool:
        # Who has never had an answer will not get one; a server that is restarted may take its time.
        patience = LONGEST_OUTAGE if self.tally.settled else self._plan.patience
        self.gave_up = now - self._alone_since > patience
        if self.gave_up or now >= self._cut_at:
            return True
        idle = len(self._free) + len(self._resting) + len(self._lost)
        return idle == len(self._connections) and self._schedule.over(now)

    def _next_moment(self) -> float:
        """When there is something to do, if nothing arrives."""
        moments = [self._next_sweep]
        moments += [queue[0][0] for queue in (self._resting, self._lost) if queue]
        if self._held:
            moments.append(self._held[0][0])
        if self._free:
            moments.append(self._schedule.next_due(self._now()))
        return min(moments)

    def _turn(self) -> None:
        now = self._now()
        ends = now + TURN_SECONDS
        while True:
            self._clock.forget(now)
            self._release(now)
            while self._free and (due := self._schedule.take(self._plan.pipeline, now)):
                self._begin(self._free.popleft(), due, now)
            if now >= ends or not (events := self._selector.select(0)):
                return
            now = self._now()
            for key, mask in events:
                self._on_event(key.data, mask, now)

    def _release(self, now: float) -> None:
        """Let those go on that have waited long enough, and no longer wait for those that are stuck."""
        while self._held and self._held[0][0] <= now:
            _, connection, sock = self._held.popleft()
            if connection.sock is sock and not connection.blocked:
                self._flush(connection, now)
        for queue in (self._resting, self._lost):
            while queue and queue[0][0] <= now:
                self._free.append(queue.popleft()[1])
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            for connection in self._connections:
                if connection.due and now - connection.moved > self._plan.patience:
                    self._lose(connection, "no answer in time", now)

    def _begin(self, connection: _Connection, due: list[float], now: float) -> None:
        """Send requests, on a new connection if there is none."""
        connection.due, connection.moved = due, now
        only = self._plan.mix.only
        if only is not None and not only.cut and self._plan.rate is None:
            connection.outbox.append(only.line * len(due))
            connection.exchange.sent(now, now, len(due), wants_time=only.wants_time)
        else:
            self._compose(connection, due, now)
        if connection.sock is None:
            try:
                connection.sock = sock = socket.socket(self._family, socket.SOCK_STREAM)
                sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                code = sock.connect_ex(self._address)
                self._selector.register(sock, selectors.EVENT_READ, connection)
            except OSError as exc:
                code = exc.errno or errno.EIO
            if code not in (0, errno.EINPROGRESS):
                self._lose(connection, os.strerror(code).lower(), now)
                return
        self._flush(connection, now)

    def _compose(self, connection: _Connection, due: list[float], now: float) -> None:
        """Deal lines, and put into one piece what is sent at once."""
        piece: list[bytes] = []
        for when, kind in zip(due, self._kinds, strict=False):
            connection.exchange.sent(when, now, 1, wants_time=kind.wants_time)
            if kind.cut:
                connection.outbox.append(b"".join([*piece, kind.line[: kind.cut]]))
                piece = [kind.line[kind.cut :]]
            else:
                piece.append(kind.line)
        connection.outbox.append(b"".join(piece))

    def _flush(self, connection: _Connection, now: float) -> None:
        """Send the next piece, or what the kernel takes of it."""
        sock = connection.sock
        if sock is None:
            return
        piece = connection.outbox[0]
        try:
            taken = sock.send(piece)
        except BlockingIOError:
            taken = 0
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:
                self._lose_what_is_left(connection, exc, now)
                return
            taken = 0
        if taken:
            connection.moved = now
            connection.midline = piece[taken - 1 : taken] != b"\n"
            if not connection.connected:
                connection.connected = True
                self.tally.opened += 1
        blocked = taken < len(piece)
        if blocked != connection.blocked:
            connection.blocked = blocked
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if blocked else 0)
            self._selector.modify(sock, wanted, connection)
        if blocked:
            connection.outbox[0] = piece[taken:]
            return
        connection.outbox.popleft()
        if connection.outbox:
            self._held.append((now + SPLIT_PAUSE, connection, sock))

    def _on_event(self, connection: _Connection, mask: int, now: float) -> None:
        sock = connection.sock
        if mask & selectors.EVENT_READ and sock is not None:
            try:
                data = sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                pass
            except OSError as exc:
                self._lose(connection, _cause(exc), now)
            else:
                self._take(connection, data, now)
        if mask & selectors.EVENT_WRITE and connection.sock is sock and sock is not None:
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._lose_what_is_left(connection, OSError(code, ""), now)
            else:
                self._flush(connection, now)

    def _take(self, connection: _Connection, data: bytes, now: float) -> None:
        exchange = connection.exchange
        if not connection.due:  # between requests, the server may close, or say that it has to
            exchange.receive(data, now)
            self._close(connection)
        elif not data:
            self._lose(connection, "closed", now)
        elif fault := exchange.receive(data, now):
            self._lose(connection, fault, now)
        else:
            self._alone_since = inf
            connection.moved = now
            connection.proven = True
            if not exchange.waiting:
                self._done(connection, now)

    def _done(self, connection: _Connection, now: float) -> None:
        connection.due = []
        if self._plan.visits:
            self._close(connection)
        if self._plan.think_time:
            self._resting.append((now + self._plan.think_time, connection))
        else:
            self._free.append(connection)

    def _lose_what_is_left(self, connection: _Connection, exc: OSError, now: float) -> None:
        """Take the answers that came before a connection broke, then give it up."""
        sock = connection.sock
        while connection.sock is not None and connection.sock is sock and connection.due:
            try:
                data = connection.sock.recv(RECEIVE_BYTES)
            except OSError:
                break
            if not data:
                break
            self._take(connection, data, now)
        if connection.due and connection.sock is sock:
            self._lose(connection, _cause(exc), now)

    def _lose(self, connection: _Connection, cause: str, now: float) -> None:
        """Give a connection up, and what was sent on it; what was not sent is for another one."""
        self._take_back(connection)
        if not connection.connected:
            self.tally.unconnected[cause] += 1
            self._alone_since = min(self._alone_since, now)
        connection.exchange.lost(cause)
        connection.due = []
        proven = connection.proven
        self._close(connection)
        if proven:
            self._free.append(connection)
        else:
            self._lost.append((now + RECONNECT_PAUSE, connection))

    def _take_back(self, connection: _Connection) -> None:
        if unsent := connection.unsent():
            connection.exchange.not_sent(unsent)
            self._schedule.give_back(connection.due[-unsent:])

    def _close(self, connection: _Connection) -> None:
        connection.exchange.closed()
        connection.outbox.clear()
        connection.connected = connection.midline = connection.proven = connection.blocked = False
        if connection.sock is not None:
            if connection.sock.fileno() in self._selector.get_map():
                self._selector.unregister(connection.sock)
            connection.sock.close()
            connection.sock = None


def _cause(exc: OSError) -> str:
    if exc.errno in (errno.ECONNRESET, errno.EPIPE):
        return "reset"
    return os.strerror(exc.errno or errno.EIO).lower()
