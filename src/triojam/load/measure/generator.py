"""The load generator: many connections in one loop, with every answer checked.

A closed loop sends the next requests of a connection when it has the answers to the last ones; it sends less
to a server that stalls. An open loop (`rate`) has requests due at certain times, independent of the server.
`schedule` says from when their latency counts.

One module of more than 300 lines: each way in which a connection ends touches the same few queues.
"""

import random
import socket
from collections import deque
from functools import partial
from math import inf

from triojam.load.measure.checker import AFTER_THE_END, AnswerChecker, Records
from triojam.load.measure.clock import ServerClock
from triojam.load.measure.connection import Address, Broken, Connection, cause_of
from triojam.load.measure.loop import Loop
from triojam.load.measure.manners import Manners
from triojam.load.measure.poller import END, READ, WRITE, monotonic
from triojam.load.measure.schedule import Schedule
from triojam.load.measure.tally import STOOD_STILL, Tally
from triojam.load.measure.tls import Trust
from triojam.load.plan import Plan

# Between the two pieces of a split line: long enough that a server reads them separately.
SPLIT_PAUSE = 0.002
RECONNECT_PAUSE = 0.1
# The longest pause after refusals.
LONGEST_PAUSE = 2.0
# How long to wait for a server that has answered before and restarts.
LONGEST_OUTAGE = 60.0
# How often some connections are looked at whose patience may have ended, and how many.
SWEEP_SECONDS = 0.005
SWEPT_AT_ONCE = 512
# How many requests begin between two looks at what has arrived.
BEGUN_AT_ONCE = 8
# After an interrupt, how long to wait for the answers to requests in flight.
LAST_ANSWERS_SECONDS = 1.0
NO_ANSWER = "no answer in time"
NO_CONNECTION = "no connection in time"
_SOCKET, _ERROR = socket.SOL_SOCKET, socket.SO_ERROR


class LoadGenerator:
    """Sends the requests of a plan to one socket address, and tallies their outcomes.

    worker: the number of this worker among those of the plan. began: when the load begins, by `monotonic`.
    trust: for TLS. idle: the seconds since `began` in which there was nothing to do. counted_seconds: those
    in which answers counted as timely.
    """

    def __init__(  # noqa: PLR0913  # what a load needs, and which part of it this is
        self,
        plan: Plan,
        address: Address,
        clock: ServerClock,
        *,
        chance: random.Random,
        worker: int = 0,
        began: float | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.tally = Tally()
        self.began = monotonic() if began is None else began
        self.ended = self.began
        self.idle = self.counted_seconds = 0.0
        self._counting_since: float | None = None
        self._settled_before = 0
        self.loop = Loop()
        self.gave_up = self._stopped = False
        self._plan, self._address, self._clock = plan, address, clock
        self._context = trust.context() if trust is not None else None
        self._name = trust.name if trust is not None else ""
        self._kinds = plan.mix.deal(chance)
        self._schedule = Schedule(plan, self.began, self.tally, worker)
        self.records = Records(self.tally, self._schedule.measured_from)
        self._manners = Manners(plan.patience)
        connections = plan.connections // plan.workers + (worker < plan.connections % plan.workers)
        self._free = deque(Connection(AnswerChecker(self.records, clock)) for _ in range(connections))
        self._busy: set[Connection] = set()
        self._swept_at = self.began
        self._swept: list[Connection] = []
        self._outage_since = inf  # the first failed attempt to connect after the last success or answer
        self._cut_at = self._stop_at = inf
        only = plan.mix.only
        self._same = only if only is not None and not only.cut and plan.rate is None else None

    @property
    def elapsed(self) -> float:
        """How long the load has run, in seconds."""
        return monotonic() - self.began

    def stop(self) -> None:
        """Send no more requests, and wait only briefly for those in flight. Any thread may call it."""
        self._stop_at = monotonic()

    def cut(self) -> None:
        """Do not wait for requests in flight. Any thread may call it."""
        self._stopped = True
        self._cut_at = monotonic()

    def run(self) -> None:
        """Send all requests, and wait for the answers. Call it only once."""
        self.loop.at(self.began, self._sweep)
        self.loop.at(self._schedule.measured_from, self._begin_counting)
        if self._plan.requests is None:
            self.loop.at(self._schedule.ends, self._end_counting)
        try:
            self.loop.run(self)
        finally:
            self._end()

    def _end(self) -> None:
        now = self.ended = monotonic()
        self._end_counting(now)
        for connection in list(self._busy):
            self._take_back(connection)
            cause = "interrupted" if self._stopped else NO_ANSWER
            connection.checker.lost(cause, now, in_time=self._stopped)
        for connection in self.loop.poller.keys():  # noqa: SIM118  # not a dict
            connection.close()
        self.loop.poller.close()
        self._schedule.give_up(now)

    def _begin_counting(self, now: float) -> None:
        """The warm-up is over."""
        self._counting_since = now
        self._settled_before = self.tally.settled

    def _end_counting(self, now: float) -> None:
        """Requests are due no more, or the load is over."""
        if self._counting_since is not None:
            self.counted_seconds = now - self._counting_since
            self.tally.timely = self.tally.settled - self._settled_before
            self._counting_since = None

    def finished(self, now: float) -> bool:
        """Whether all requests have an outcome, or the load is to end."""
        if now >= self._stop_at:
            self._stop_at = inf
            self._stopped = True
            self._schedule.stop(now)
            self._cut_at = min(self._cut_at, now + LAST_ANSWERS_SECONDS)
        if self._outage_since < now:
            patience = LONGEST_OUTAGE if self.tally.settled else self._plan.patience
            self.gave_up = now - self._outage_since > patience
        return self.gave_up or now >= self._cut_at or (not self._busy and self._schedule.over(now))

    def next_due(self, now: float) -> float:
        """Return when the next request can be sent; inf if no connection is free."""
        return self._schedule.next_due(now) if self._free else inf

    def waited(self, start: float, end: float) -> None:
        """The loop has waited."""
        self.idle += max(end - max(start, self.began), 0.0)

    def _sweep(self, now: float) -> None:
        """Look at some connections: lose those on which nothing has moved for too long."""
        self.loop.at(now + SWEEP_SECONDS, self._sweep)
        # Each step of the loop is short: after such a gap, this process was stopped, or had no processor.
        if (gap := now - self._swept_at - SWEEP_SECONDS) > STOOD_STILL and now > self._schedule.measured_from:
            self.tally.stood_still = max(self.tally.stood_still, gap)
        self._swept_at = now
        if not self._swept:
            self._swept = list(self._busy)
        some, self._swept = self._swept[:SWEPT_AT_ONCE], self._swept[SWEPT_AT_ONCE:]
        unsent_is_late = self._plan.rate is None and now >= self._schedule.ends
        for connection in some:
            if connection not in self._busy:
                continue
            if not connection.connected and unsent_is_late:
                self._abandon(connection)
            elif now - connection.moved > self._plan.patience:
                self._give_up(connection, now)

    def _give_up(self, connection: Connection, now: float) -> None:
        """Lose a connection that took too long, unless its answer has arrived.

        The client may have stood still.
        """
        self._flush(connection, now)  # there may be room again
        if connection not in self._busy:
            return
        if not connection.events:
            connection.arrived, connection.doubt = now, now - connection.sent
        self._read(connection, now, at_end=bool(connection.events & END))
        if connection in self._busy and now - connection.moved > self._plan.patience:
            self._lose(connection, NO_ANSWER if connection.connected else NO_CONNECTION, now)

    def _abandon(self, connection: Connection) -> None:
        """Close a connection that was not opened before the end."""
        self._take_back(connection)
        connection.starts = []
        self._busy.remove(connection)
        self._close(connection)

    def begin(self, now: float) -> None:
        """Send a few of the requests that are due."""
        self._clock.forget(now)
        for _ in range(min(BEGUN_AT_ONCE, len(self._free))):
            starts = self._schedule.take(self._plan.pipeline, now, self._free[0].free)
            if not starts:
                return
            connection = self._free.popleft()
            if connection.events:  # the server has ended it, or said something before the request
                self.serve(connection, now)
            self._begin(connection, starts, now)
            now = monotonic()

    def _begin(self, connection: Connection, starts: list[float], now: float) -> None:
        """Send requests, on a new connection if this one is closed."""
        if not connection.is_open:
            connection = Connection(AnswerChecker(self.records, self._clock), connection.refusals)
        connection.own_delay = self._schedule.own_delay
        if not connection.is_open:
            try:
                self.loop.poller.add(connection.open(self._address, self._context, self._name), connection)
            except Broken as exc:
                connection.close()
                self._schedule.give_back(starts)
                self._not_connected(connection, cause_of(exc), now)
                return
        self._busy.add(connection)
        if self._same is not None:
            connection.request_same(self._same, starts, now)
        else:
            connection.request(self._kinds, starts, now)
        self._flush(connection, now)

    def _flush(self, connection: Connection, now: float) -> None:
        """Send the next piece, if the connection is still open."""
        if not connection.is_open:
            return
        if not connection.may_send:
            if connection.blocked:  # what was to be sent was taken back
                connection.blocked = False
                self.loop.poller.watch_writing(connection.sock, wanted=False)
            return
        was_connected, was_blocked = connection.connected, connection.blocked
        try:
            connection.send()
        except Broken as exc:
            self._lose_after_reading(connection, cause_of(exc), now)
            return
        if connection.connected and not was_connected:
            self.tally.opened += 1
            self._outage_since = inf
        if connection.blocked != was_blocked:
            self.loop.poller.watch_writing(connection.sock, wanted=connection.blocked)
        if not connection.blocked and connection.may_send:
            self.loop.at(now + SPLIT_PAUSE, partial(self._flush, connection))

    def serve(self, connection: Connection, now: float) -> None:
        """Do what the events of a connection ask for."""
        events, connection.events = connection.events, 0
        if events & READ and connection.is_open:
            self._read(connection, now, at_end=bool(events & END))
        if events & WRITE and connection.is_open:
            if code := connection.sock.getsockopt(_SOCKET, _ERROR):
                self._lose_after_reading(connection, cause_of(OSError(code, "")), now)
            else:
                self._flush(connection, now)

    def _read(self, connection: Connection, now: float, *, at_end: bool) -> None:
        """Read once, and again in a later step if there may be more."""
        try:
            data, ended, more = connection.receive()
        except Broken as exc:
            self._end_of(connection, cause_of(exc), now)
            return
        if data:
            self._take(connection, data, now)
        if not connection.is_open:
            return
        if ended:
            self._end_of(connection, "closed", now)
            return
        if more or at_end:
            self.loop.again(connection, READ | END if at_end else READ)
        if not connection.connected:  # the handshake goes on, or is done
            self._flush(connection, now)

    def _take(self, connection: Connection, data: bytes, now: float) -> None:
        """Take what has arrived."""
        checker, tally = connection.checker, self.tally
        if not connection.connected:  # a refusal, before the request is out
            self._take_back(connection)
        settled, outcomes = tally.settled, checker.outcomes
        fault = checker.receive(data, connection.arrived)
        tally.own_seconds += (tally.settled - settled) * connection.doubt
        if checker.outcomes != outcomes:
            connection.moved = now
        if tally.settled != settled:
            connection.proven, connection.refusals = True, 0
            self._outage_since = inf
        if not connection.starts:  # a line that nothing asked for
            self._end_idle(connection, now)
        elif fault is not None:
            self._lose(connection, fault, now)
        elif not checker.waiting and connection.connected:  # else this is a part of a refusal
            self._done(connection, now)

    def _done(self, connection: Connection, now: float) -> None:
        """All answers are here: the connection is free for the next requests."""
        connection.starts = []
        connection.free = connection.arrived - connection.doubt - connection.own_delay
        self._busy.remove(connection)
        checker = connection.checker
        if self._plan.visits or connection.outbox:  # a bad server can answer what is not sent yet
            self._close(connection)
        elif checker.refused and (pause := self._manners.pause(checker.errors)):
            connection.parting = True
            self.loop.at(now + pause, partial(self._read_on, connection))
            return
        self._release(connection, now)

    def _release(self, connection: Connection, now: float) -> None:
        if self._plan.think_time:
            connection.free += self._plan.think_time
            self.loop.at(now + self._plan.think_time, lambda _now: self._free.append(connection))
        else:
            self._free.append(connection)

    def _read_on(self, connection: Connection, now: float) -> None:
        """The server has not closed the connection, though it might have."""
        if connection.parting:
            self._part(connection, now, closes=False)

    def _end_idle(self, connection: Connection, now: float) -> None:
        """The server has ended a connection between requests, which it may do."""
        self._close(connection)
        if connection.parting:
            self._part(connection, now, closes=True)

    def _part(self, connection: Connection, now: float, *, closes: bool) -> None:
        """It is known now what the server does after this many errors. The wait was for the server."""
        connection.parting = False
        connection.free = now - connection.own_delay
        self._manners.learn(connection.checker.errors, closes=closes)
        self._release(connection, now)

    def _end_of(self, connection: Connection, cause: str, now: float) -> None:
        """The server has ended a connection."""
        checker = connection.checker
        self._take_back(connection)
        instead = checker.closed(cleanly=cause == "closed", now=connection.arrived)
        if not connection.starts:
            self._end_idle(connection, now)
            return
        if instead:
            connection.proven, connection.refusals = True, 0
        self._lose(connection, AFTER_THE_END if instead or checker.refused else cause, now)

    def _lose_after_reading(self, connection: Connection, cause: str, now: float) -> None:
        """Lose a connection that broke during a send, after taking the answers that arrived before."""
        more = True
        while more and connection.starts and connection.is_open:
            try:
                data, _, more = connection.receive()
            except Broken:
                break
            if data:
                self._take(connection, data, now)
        if connection.starts and connection.is_open:
            self._lose(connection, cause, now)

    def _lose(self, connection: Connection, cause: str, now: float) -> None:
        """Close a connection; its requests have failed, but those that were not sent are due again."""
        self._take_back(connection)
        connection.checker.lost(cause, now, in_time=cause != NO_ANSWER)
        connection.starts = []
        self._busy.remove(connection)
        self._close(connection)
        if connection.proven:
            connection.free = now - connection.own_delay
            self._free.append(connection)
        elif connection.checker.ended_by:
            if not connection.connected:
                self._outage_since = min(self._outage_since, now)
            self._back_off(connection, now)
        elif connection.connected:
            self._free_later(connection, now + RECONNECT_PAUSE)
        else:
            self._not_connected(connection, cause, now)

    def _not_connected(self, connection: Connection, cause: str, now: float) -> None:
        self.tally.unconnected[cause] += 1
        self._outage_since = min(self._outage_since, now)
        self._free_later(connection, now + RECONNECT_PAUSE)

    def _back_off(self, connection: Connection, now: float) -> None:
        """The server has refused a connection: try again later, and later each time."""
        pause = min(RECONNECT_PAUSE * 2**connection.refusals, LONGEST_PAUSE)
        connection.refusals = min(connection.refusals + 1, 10)
        self._free_later(connection, now + pause)

    def _free_later(self, connection: Connection, moment: float) -> None:
        connection.free = moment - connection.own_delay
        self.loop.at(moment, lambda _now: self._free.append(connection))

    def _take_back(self, connection: Connection) -> None:
        """Take back the requests of which no byte was sent."""
        if unsent := connection.unsent():
            removed = connection.checker.not_sent(len(unsent))
            self._schedule.give_back(unsent[len(unsent) - removed :])
            connection.forget_unsent()

    def _close(self, connection: Connection) -> None:
        if connection.is_open:
            self.loop.poller.remove(connection.sock)
            connection.close()
