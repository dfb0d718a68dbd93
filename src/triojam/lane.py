"""The fast lane: a Trio listener that answers the easy clients itself, and hands over the others.

Trio's cost is per task and per step of a task, and a step costs more than the kernel's share of a request.
So the lane keeps an epoll of its own, waits with Trio for *that* one descriptor, and then, in one pass
without an await, accepts what is queued, reads each ready client once and answers whole well-formed
requests. `accept` returns only a client that needs a task, and `trio.serve_listeners` starts the shared
handler for it, with what was read and not yet decided on, and what was decided and not yet sent.

The rules of the house:

- No await between the poll and the end of the batch. Turns are capped, so that other tasks have theirs.
- Unregister before close, always: descriptor numbers are used again.
- It never waits, never logs, and decides nothing but whether a line is a plain request: every rejection,
  every `QUIT` and every client that does not take its answers is the handler's.
- The time is rendered once a batch, after its requests were read, never before.
- One client's OSError ends that client. A bug in here ends the process, loudly.
- An idle client costs no timer: `watch` looks over the marks of when each was last active.
- No accept error leaves: `serve_listeners` would sleep on it, and all clients of the lane with it.
"""

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import trio

from triojam.accepting import ACCEPT_PAUSE, AcceptQueues
from triojam.admission import ANYONE, Admission, Source
from triojam.counters import Counters
from triojam.handler import account_for_abandoned
from triojam.listeners import DrainingListener
from triojam.protocol import Connection, Rules, Timeouts
from triojam.reasons import Disconnect, Handover, Rejection, SendError
from triojam.streams import NO_BACKLOG, RECEIVE_BYTES, Backlog, TcpStream, send_some

# Nearly all that clients send: plain requests, few at a time.
PLAIN = {b"TIME\r\n" * times: times for times in range(1, 65)}
# No limit on the length of a line is less than this, so what is shorter can wait for its LF.
SHORTEST_LIMIT = len(b"TIME\r\n")
# A line in pieces is looked at whole each time; one that grows longer than this is left to the handler.
LONGEST_PARTIAL = 1024
JAM_SIZE = len(b"JAM hh:mm:ss\r\n")

# What one poll yields at most: with every client pipelining, such a batch takes some 20 ms.
EVENTS_AT_ONCE = 128
# How long the lane goes on from batch to batch before other tasks have their turn, in seconds.
TURN_SECONDS = 0.005
# How many clients may wait to be handed over before the lane lets the handler catch up.
HANDOVERS_AT_ONCE = 32
# After work, the next request of a lone client is often closer than a trip through Trio's scheduler: poll
# again this often before giving way.
EMPTY_POLLS = 20

# Deadlines are kept to this part of their length, and looked at this often at most and at least, in seconds.
WATCH_PARTS = 50
WATCH_SHORTEST, WATCH_LONGEST = 0.005, 0.5

LANE_AVAILABLE = hasattr(select, "epoll")

_now = time.perf_counter


class Lane(DrainingListener):
    """Accepts from listening sockets, which it owns, and serves the easy clients.

    rules, timeouts: may be replaced at any time. jam: renders the current time as a whole answer line.
    shared: as for `ClientListener`.
    """

    def __init__(  # noqa: PLR0913  # as the handler
        self,
        sockets: Iterable[socket.socket],
        *,
        rules: Rules,
        timeouts: Timeouts,
        counters: Counters,
        admission: Admission,
        jam: Callable[[], bytes],
        shared: bool = False,
    ) -> None:
        self.rules = rules
        self.timeouts = timeouts
        self._counters = counters
        self._jam = jam
        self._epoll = select.epoll()
        self._admission = admission
        self._queues = AcceptQueues(sockets, self._epoll, counters, admission)
        self._shared = shared
        self._active: dict[int, float] = {}  # the lane's clients, and when each last had an answer
        self._partials: dict[int, Backlog] = {}  # lines in pieces, in the order of their first bytes
        self._handovers: deque[tuple[int, Backlog]] = deque()
        self._sources: dict[int, Source] = {}  # of all these, while anything is limited by source
        self._ahead = trio.current_time() - _now()

    async def accept(self) -> TcpStream:
        """Serve the easy clients; return the next one that needs a task, counted as opened.

        Raises trio.ClosedResourceError once the lane is closed.
        """
        await trio.lowlevel.checkpoint()
        while not self._epoll.closed:
            if len(self._handovers) < HANDOVERS_AT_ONCE:
                self._serve_turn()
            if self._handovers:
                fd, backlog = self._handovers.popleft()
                return TcpStream.adopt(fd, self._sources.pop(fd, ANYONE), backlog.moved(self._ahead))
            with suppress(trio.ClosedResourceError):  # closed, or woken to look at the hand-overs
                await trio.lowlevel.wait_readable(self._epoll.fileno())
        raise trio.ClosedResourceError("the lane was closed")

    async def aclose(self) -> None:
        """Close the listening sockets and every client, whatever it is in the middle of."""
        if not self._epoll.closed:
            self._queues.close()
            while self._active:
                self._hand_over(next(iter(self._active)), Handover.DRAIN)
            while self._handovers:
                fd, backlog = self._handovers.popleft()
                account_for_abandoned(backlog, self.rules, self._counters)
                self._end(fd, Disconnect.DRAIN)
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
        await trio.lowlevel.checkpoint()

    async def watch(self) -> None:
        """Keep the deadlines of the lane's clients; runs beside `accept`, until it is cancelled."""
        longest_idle_since = 0.0
        while True:
            now = _now()
            if self._queues.paused_until is not None and now >= self._queues.paused_until:
                with suppress(OSError):
                    self._queues.resume()
            for fd, partial in list(self._partials.items()):
                overdue = partial.first_byte is not None and now - partial.first_byte >= self.timeouts.line
                if not overdue or len(self._handovers) >= HANDOVERS_AT_ONCE:
                    break
                self._hand_over(fd, Handover.TIMEOUT)
            if now - longest_idle_since >= self.timeouts.idle:
                idle = now - self.timeouts.idle
                for fd in [fd for fd, active in self._active.items() if active <= idle]:
                    if fd not in self._partials:
                        self._close(fd, Disconnect.IDLE)
                # Nobody will have been idle for too long before the one who has been for longest now.
                longest_idle_since = min(self._active.values(), default=now)
            pause = min(self.timeouts.idle, self.timeouts.line) / WATCH_PARTS
            if self._handovers:
                self._wake()
                pause = WATCH_SHORTEST  # there may be more
            await trio.sleep(min(max(pause, WATCH_SHORTEST), WATCH_LONGEST))

    async def drain(self) -> None:
        """Stop accepting, and hand over everyone: the handler knows how to part."""
        if not self._shared:
            for client in self._queues.accept_all(_now()):
                self._adopt(*client)
        self._queues.close()
        for fd in list(self._active):
            self._hand_over(fd, Handover.DRAIN)
        self._wake()
        while self._handovers:
            await trio.lowlevel.checkpoint()

    def enter_sources(self) -> None:
        """Do as the handler does of this name, for the lane's clients and those not handed over yet."""
        for fd in [*self._active, *(fd for fd, _ in self._handovers)]:
            if fd not in self._sources:
                client = socket.socket(fileno=fd)
                with suppress(OSError):  # gone already
                    self._sources[fd] = self._admission.enter(client.getpeername()[0])
                client.detach()

    def _serve_turn(self) -> None:
        poll = self._epoll.poll
        ends = _now() + TURN_SECONDS
        while True:
            for _ in range(1 if self._handovers else EMPTY_POLLS):  # a crowd that is late is not to wait, too
                if events := poll(0, EVENTS_AT_ONCE):
                    break
            else:
                return
            began = _now()
            if due := self._read(events, began):  # first read from all of them, then answer them all
                self._answer(due, began)
            if self._handovers or _now() >= ends:
                return

    def _read(self, events: list[tuple[int, int]], began: float) -> list[tuple[int, int]]:
        """Read once from each client, and return those who are to be told the time, and how many times."""
        listening, partials, read = self._queues.sockets, self._partials, os.read
        due: list[tuple[int, int]] = []
        for fd, _ in events:
            if fd in listening:
                # Their first requests are often there already.
                clients = self._queues.accept(fd, began)
                events += [(client, 0) for client, source in clients if self._adopt(client, source)]
                continue
            try:
                data = read(fd, RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                self._broken(fd)
                continue
            times = PLAIN.get(data)
            if times is None or fd in partials:
                times = self._sort_out(fd, data, began)
            if times:
                due.append((fd, times))
        if self._admission.limits_rate:
            self._turn_away(due, began)
        return due

    def _turn_away(self, due: list[tuple[int, int]], now: float) -> None:
        """Leave those who ask more than they may to the handler, which decides about each request."""
        for fd, times in self._admission.beyond_rate(due, self._sources, now + self._ahead):
            due.remove((fd, times))
            # That they may have said more than TIME is no matter any more: each gets a time or that error.
            asked = b"TIME\r\n" * times + self._partials.get(fd, NO_BACKLOG).received
            self._hand_over(fd, Handover.RATE, Backlog(asked))

    def _answer(self, due: list[tuple[int, int]], began: float) -> None:
        active, write, served = self._active, send_some, 0
        jam = self._jam()
        for fd, times in due:
            answers = jam if times == 1 else jam * times
            sent = write(fd, answers)
            if sent == len(answers):
                served += times
                active[fd] = began
            else:
                self._settle(fd, answers, times, sent, began)
        if served:
            self._counters.requests += served
            self._counters.responses += served
            # One observation for all of them, of the whole batch: no request took longer than is said.
            self._counters.request_duration.observe(_now() - began, served)

    def _sort_out(self, fd: int, data: bytes, arrived: float) -> int:
        """Look at what is not just plain requests; return how many times the client is to be told."""
        partial = self._partials.get(fd)
        if not data:
            if partial is None:
                self._close(fd, Disconnect.EOF)
            else:
                self._hand_over(fd, Handover.EOF)
            return 0
        first_byte = None
        if partial is not None:
            data, first_byte = partial.received + data, partial.first_byte
        times = PLAIN.get(data)
        tail = b""
        if len(data) < SHORTEST_LIMIT and b"\n" not in data:
            times, tail = 0, data
        elif times is None:
            # The protocol itself decides, on a fresh connection, for the lane's clients have no past: what is
            # to be rejected, and the end of the connection, is left to the handler, which decides anew.
            outcome = Connection(self.rules).receive(data, bytes)
            tail = data[data.rfind(b"\n") + 1 :]
            if outcome.rejected or outcome.end is not None or len(tail) > LONGEST_PARTIAL:
                self._hand_over(fd, Handover.LINE, Backlog(data, first_byte))
                return 0
            times = outcome.requests
        if times and first_byte is not None:
            self._counters.request_receive.observe(arrived - first_byte)
            del self._partials[fd]
            first_byte = None
        if tail:
            self._partials[fd] = Backlog(tail, arrived if first_byte is None else first_byte)
        return times

    def _settle(self, fd: int, answers: bytes, times: int, sent: int, arrived: float) -> None:
        """Account for answers of which not all bytes were taken; -1 for a broken connection."""
        taken = max(sent, 0) // JAM_SIZE
        self._counters.requests += times
        if taken:
            self._counters.responses += taken
            self._counters.request_duration.observe(_now() - arrived, taken)
        if sent < 0:
            self._broken(fd, due=times)
        else:
            backlog = Backlog(unsent=answers[sent:], due=times - taken, arrived=arrived)
            self._hand_over(fd, Handover.SEND, backlog)

    def _adopt(self, fd: int, source: Source) -> bool:
        """Watch a new client; False, and it is closed, if the system has no room for that."""
        now = _now()
        if source is not ANYONE:
            self._sources[fd] = source
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except OSError:
            self._end(fd, Disconnect.INTERNAL_ERROR)
            self._queues.pause(now + ACCEPT_PAUSE)
            return False
        self._active[fd] = now
        return True

    def _broken(self, fd: int, *, due: int = 0) -> None:
        """Account for a connection that is broken, `due` times and a line in pieces with it."""
        self._counters.send_errors[SendError.RESET] += due
        if self._partials.pop(fd, None) is not None:
            self._counters.requests += 1
            self._counters.rejected[Rejection.INCOMPLETE] += 1
        self._close(fd, Disconnect.RESET)

    def _close(self, fd: int, reason: Disconnect) -> None:
        self._epoll.unregister(fd)
        del self._active[fd]
        self._end(fd, reason)

    def _end(self, fd: int, reason: Disconnect) -> None:
        self._admission.leave(self._sources.pop(fd, ANYONE))
        os.close(fd)
        self._counters.closed(reason)

    def _hand_over(self, fd: int, cause: Handover, backlog: Backlog = NO_BACKLOG) -> None:
        """Queue a client for the handler, with its line in pieces unless that is in the backlog already."""
        partial = self._partials.pop(fd, None)
        if partial is not None and not backlog.received:
            backlog = backlog._replace(received=partial.received, first_byte=partial.first_byte)
        self._epoll.unregister(fd)
        since = self._active.pop(fd)
        self._counters.handovers[cause] += 1
        self._handovers.append((fd, backlog._replace(since=since)))

    def _wake(self) -> None:
        """Let `accept` look at the hand-overs, which did not come about by an event on its epoll."""
        trio.lowlevel.notify_closing(self._epoll.fileno())
