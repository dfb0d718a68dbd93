"""The fast lane: a Trio listener that answers the easy clients itself, and hands over the others.

Trio costs time per task and per step of a task, and a step costs more than the kernel's share of a request.
So the lane keeps an epoll of its own, and waits with Trio for *that* one descriptor. Then, in one pass
without an await, it accepts queued clients, reads each ready client once and answers whole, well-formed
requests. `accept` returns only a client that needs a task. `trio.serve_listeners` then starts the shared
handler for it, with the bytes that were read and not decided on, and the answers that were not sent.

The rules of this module:

- No await between the poll and the end of the batch. Turns are capped, so that other tasks have theirs.
- Unregister before close, always: the kernel uses descriptor numbers again.
- The lane never waits, never logs, and decides only whether a line is a plain request. The handler does the
  rest: every rejection, every `QUIT`, and every client that does not take its answers.
- The time is rendered once a batch, after its requests were read, never before.
- An OSError of a client ends that client. A bug in here ends the process, loudly.
- An idle client costs no timer: `watch` compares when each client was last active. Before the lane closes an
  idle client, it reads from it once more: the process may have stood still while the request came.
- No accept error leaves: `serve_listeners` would sleep on it, and all clients of the lane with it.

One module of more than 300 lines: a pass over ready clients is one idea, and it is fast because it sees all
of the lane's state.
"""

import math
import os
import select
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice

import trio

from triojam.core.admission import ANYONE, Source
from triojam.core.counters import Counters
from triojam.core.protocol import PLAIN, REQUEST, Connection
from triojam.core.reasons import Disconnect, HandoverCause, Rejection, SendError
from triojam.serving.client import Client
from triojam.serving.listeners import ACCEPT_PAUSE, LAST_TURNS, AcceptQueues, DrainingListener
from triojam.serving.newcomers import Newcomer, Relayed
from triojam.serving.service import Service
from triojam.serving.streams import RECEIVE_BYTES, TcpStream

# Each piece makes the lane look at the whole line again; a longer line is handed over.
LONGEST_PARTIAL = 1024

# The most events of one poll: with every client pipelining, such a batch takes some 4 ms.
EVENTS_AT_ONCE = 128
# The longest turn, in seconds: then other tasks have theirs.
TURN_SECONDS = 0.005
# The most hand-overs in one turn. While more of them wait, the lane lets the handler catch up.
HANDOVERS_AT_ONCE = 32
# The most idle clients that one turn closes.
IDLE_AT_ONCE = 64
# After work, a lone client's next request often comes sooner than a trip through Trio's scheduler takes: poll
# this many times more before other tasks have their turn.
EMPTY_POLLS = 20

# `watch` looks once in this part of a deadline, and at least and at most this long after the last look.
WATCH_PARTS = 50
WATCH_SHORTEST, WATCH_LONGEST = 0.005, 0.5

LANE_AVAILABLE = hasattr(select, "epoll")


class FastLane(DrainingListener):
    """Accepts from listening sockets, which it owns, and serves the easy clients.

    shared: as for `ClientListener`.
    """

    def __init__(self, sockets: Iterable[socket.socket], service: Service, *, shared: bool = False) -> None:
        self._service = service
        self._epoll = select.epoll()
        self._handovers: deque[Client] = deque()
        self._queues = AcceptQueues(sockets, self._epoll, service, self._handovers)
        self._shared = shared
        self._active: dict[int, float] = {}  # when each of the lane's clients last got an answer
        # Lines in pieces, and when each began, in the order of their first bytes.
        self._partials: dict[int, tuple[bytes, float]] = {}
        self._share = HANDOVERS_AT_ONCE  # hand-overs that are left in this turn
        # Of the clients, while there are limits by source, and always of the server's own.
        self._sources: dict[int, Source] = {}
        self._relayed: dict[int, Relayed] = {}  # of the clients behind a proxy
        # Trio's clock without Trio's look-up of it: a lone client's request takes some 40 µs in all.
        self._now = trio.lowlevel.current_clock().current_time

    async def accept(self) -> Client:
        """Serve the easy clients; return the next one that needs a task, counted as opened.

        Raises trio.ClosedResourceError once the lane is closed. Between clients that are handed over in one
        turn there is no checkpoint, so that `trio.serve_listeners` starts them all at once.
        """
        while not (self._handovers and self._share):
            if self._handovers:
                await trio.lowlevel.checkpoint()
            else:
                with suppress(trio.ClosedResourceError):  # closed, or woken to look at the hand-overs
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
            if self._epoll.closed:
                raise trio.ClosedResourceError("the lane was closed")
            self._share = HANDOVERS_AT_ONCE
            if len(self._handovers) < HANDOVERS_AT_ONCE:
                self._serve_turn()
        self._share -= 1
        return self._handovers.popleft()

    async def aclose(self) -> None:
        """Close the listening sockets and every client, also in the middle of a line."""
        if not self._epoll.closed:
            self._queues.close()
            for fd in list(self._active):
                if self._partials.pop(fd, None) is not None:
                    self._reject(fd, Rejection.DRAINING)
                self._close(fd, Disconnect.DRAIN)
            while self._handovers:
                client = self._handovers.popleft()
                client.abandon(SendError.SHUTDOWN, Connection.drain)
                client.close(Disconnect.DRAIN)
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
        await trio.lowlevel.checkpoint()

    async def watch(self) -> None:
        """Keep the deadlines of the lane's clients; runs beside `accept`, until the lane is closed."""
        longest_idle_since = 0.0
        while not self._epoll.closed:
            now, timeouts = self._now(), self._service.timeouts
            if self._queues.paused_until is not None and now >= self._queues.paused_until:
                with suppress(OSError):
                    self._queues.resume()
            if now - longest_idle_since >= timeouts.idle:
                await self._part_with_idle(now - timeouts.idle)
                # No client can be idle for too long before the one that has been idle longest.
                longest_idle_since = min(self._active.values(), default=now)
            pause = min(timeouts.idle, timeouts.line) / WATCH_PARTS
            if self._hand_over_late(now - timeouts.line):
                await trio.lowlevel.checkpoint()  # there may be more
            else:
                await trio.sleep(min(max(pause, WATCH_SHORTEST), WATCH_LONGEST))

    async def drain(self) -> None:
        """Stop accepting, and hand over every client: the handler parts with them."""
        if not self._shared:
            await self._empty_queues()
        self._queues.close()
        while self._active or self._handovers:
            self._hand_over_some(self._active, HandoverCause.DRAIN)
            await trio.lowlevel.checkpoint()

    def enter_sources(self) -> None:
        """Count the lane's connections by source, and those that wait to be handed over."""
        enter = self._service.admission.enter
        for fd in self._active:
            if fd in self._relayed:
                host = self._relayed[fd].host
                if fd not in self._sources and host is not None:
                    self._sources[fd] = enter(host)
            elif fd not in self._sources:
                client = socket.socket(fileno=fd)
                with suppress(OSError):  # gone already
                    self._sources[fd] = enter(client.getpeername()[0])
                client.detach()
        for waiting in self._handovers:
            if waiting.source is ANYONE:
                waiting.source = enter(waiting.host)

    async def _part_with_idle(self, since: float) -> None:
        """Close the clients without an answer since then, unless a request has arrived."""
        idle = [fd for fd, active in self._active.items() if active <= since and fd not in self._partials]
        for start in range(0, len(idle), IDLE_AT_ONCE):
            # By a later turn a client may be gone, and its descriptor belong to another.
            turn = [fd for fd in idle[start : start + IDLE_AT_ONCE] if self._is_idle(fd, since)]
            answered = dict(self._serve([(fd, select.EPOLLIN) for fd in turn]))
            for fd in turn:
                if fd not in answered and self._is_idle(fd, since):
                    self._close(fd, Disconnect.IDLE)
            self._wake()
            await trio.lowlevel.checkpoint()

    def _is_idle(self, fd: int, since: float) -> bool:
        return self._active.get(fd, math.inf) <= since and fd not in self._partials

    def _hand_over_late(self, since: float) -> bool:
        """Hand over clients whose line began before then; return whether there were any."""
        oldest = islice(self._partials.items(), HANDOVERS_AT_ONCE)
        late = [fd for fd, (_, first_byte) in oldest if first_byte <= since]
        self._hand_over_some(late, HandoverCause.TIMEOUT)
        return bool(late)

    def _hand_over_some(self, clients: Iterable[int], cause: HandoverCause) -> None:
        """Hand over the first of these clients, as far as one turn allows."""
        for fd in list(islice(clients, max(HANDOVERS_AT_ONCE - len(self._handovers), 0))):
            self._hand_over(fd, cause)
        self._wake()

    async def _empty_queues(self) -> None:
        """Accept until the queues are empty, or for LAST_TURNS under a flood of new clients."""
        for _ in range(LAST_TURNS):
            more = False
            for listening in list(self._queues.sockets):
                accepted = self._queues.accept(listening, self._now())
                self._adopt_all(accepted.clients)
                more = more or accepted.more
            if not more:
                break
            await trio.lowlevel.checkpoint()

    def _serve_turn(self) -> None:
        poll = self._epoll.poll
        ends = self._now() + TURN_SECONDS
        while True:
            # Do not spin while hand-overs are queued: those clients are late already.
            for _ in range(1 if self._handovers else EMPTY_POLLS):
                if events := poll(0, EVENTS_AT_ONCE):
                    break
            else:
                return
            self._serve(events)
            if self._handovers or self._now() >= ends:
                return

    def _serve(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Read from all of them, then answer all; return each answered client with its number of answers."""
        began = self._now()
        if due := self._read(events, began):
            self._answer(due, began)
        return due

    def _read(self, events: list[tuple[int, int]], began: float) -> list[tuple[int, int]]:
        """Read once from each client; return the clients to answer, each with its number of answers."""
        listening, partials, read = self._queues.sockets, self._partials, os.read
        due: list[tuple[int, int]] = []
        for fd, _ in events:
            if fd in listening:
                # The first requests of new clients have often arrived already.
                events += self._adopt_all(self._queues.accept(fd, began).clients)
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
        if self._service.admission.limits_rate:
            self._turn_away(due, began)
        return due

    def _turn_away(self, due: list[tuple[int, int]], now: float) -> None:
        """Hand over the clients that are beyond their rate: the handler decides about each request."""
        beyond = self._service.admission.beyond_rate(due, self._sources, now)
        for fd, times in beyond:
            if self._sources[fd] is self._service.admission.itself:
                continue
            due.remove((fd, times))
            # The rest of each line does not matter any more: each request gets a time or that error.
            partial = self._partials.pop(fd, None)
            self._hand_over(fd, HandoverCause.RATE, REQUEST * times + (partial[0] if partial else b""))

    def _answer(self, due: list[tuple[int, int]], began: float) -> None:
        active, write, served = self._active, _send_some, 0
        jam = self._service.jam()
        for fd, times in due:
            answers = jam if times == 1 else jam * times
            sent = write(fd, answers)
            if sent == len(answers):
                served += times
                active[fd] = began
            else:
                self._settle(fd, answers, times, sent, began)
        counters, itself = self._service.counters, self._service.admission.itself
        if itself.connections:
            served -= sum(times for fd, times in due if self._sources.get(fd) is itself)
        if served:
            counters.requests += served
            counters.responses += served
            # One observation for the whole batch: no request took longer than this.
            counters.request_duration.observe(self._now() - began, served)

    def _sort_out(self, fd: int, data: bytes, arrived: float) -> int:
        """Look at data that is more than plain requests; return the number of answers that are due."""
        partial = self._partials.get(fd)
        if not data:
            if partial is None:
                self._close(fd, Disconnect.EOF)
            else:
                self._hand_over(fd, HandoverCause.EOF)
            return 0
        first_byte = arrived
        if partial is not None:
            data, first_byte = partial[0] + data, partial[1]
        tail = b""
        if len(data) < len(REQUEST) and b"\n" not in data:
            times, tail = 0, data
        elif (times := PLAIN.get(data, 0)) == 0:
            rules = self._service.rules
            end = rules.plain(data)
            tail = data[end:]
            if b"\n" in tail or len(tail) >= min(rules.max_line_bytes or LONGEST_PARTIAL, LONGEST_PARTIAL):
                self._hand_over(fd, HandoverCause.LINE, data)
                return 0
            times = data.count(b"\n", 0, end)
        if times and partial is not None:
            self._counters(fd).request_receive.observe(arrived - first_byte)
            del self._partials[fd]
            first_byte = arrived
        if tail:
            self._partials[fd] = (tail, first_byte)
        return times

    def _settle(self, fd: int, answers: bytes, times: int, sent: int, arrived: float) -> None:
        """Account for answers that the kernel did not take whole. sent: -1 for a broken connection."""
        if sent < 0:
            counters = self._counters(fd)
            counters.requests += times
            counters.send_errors[SendError.RESET] += times
            self._broken(fd)
        else:
            client = self._hand_over(fd, HandoverCause.SEND, sending=answers, taken=sent)
            client.owe(answers, times, arrived)

    def _adopt_all(self, clients: Iterable[Newcomer]) -> list[tuple[int, int]]:
        """Watch new clients, as far as the system can watch more; return them as events."""
        now, adopted = self._now(), []
        for sock, _, source, relayed in clients:
            fd = sock.detach()
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except OSError:
                os.close(fd)
                self._count_end(source, Disconnect.INTERNAL_ERROR)
                self._queues.pause(now + ACCEPT_PAUSE)
                continue
            if source is not ANYONE:
                self._sources[fd] = source
            if relayed is not None:
                self._relayed[fd] = relayed
            self._active[fd] = now
            adopted.append((fd, select.EPOLLIN))
        return adopted

    def _broken(self, fd: int) -> None:
        """Account for a broken connection, and for the line in pieces that it had."""
        if self._partials.pop(fd, None) is not None:
            self._reject(fd, Rejection.INCOMPLETE)
        self._close(fd, Disconnect.RESET)

    def _reject(self, fd: int, reason: Rejection) -> None:
        counters = self._counters(fd)
        counters.requests += 1
        counters.rejected[reason] += 1

    def _counters(self, fd: int) -> Counters:
        return self._service.counters_for(self._sources.get(fd, ANYONE))

    def _close(self, fd: int, reason: Disconnect) -> None:
        del self._active[fd]
        self._end(fd, reason)

    def _end(self, fd: int, reason: Disconnect) -> None:
        self._epoll.unregister(fd)
        os.close(fd)
        if self._relayed:
            self._relayed.pop(fd, None)
        self._count_end(self._sources.pop(fd, ANYONE), reason)

    def _count_end(self, source: Source, reason: Disconnect) -> None:
        self._service.admission.leave(source)
        self._service.counters_for(source).closed(reason)

    def _hand_over(
        self, fd: int, cause: HandoverCause, received: bytes = b"", *, sending: bytes = b"", taken: int = 0
    ) -> Client:
        """Queue a client for the handler. received: bytes to decide on; by default, its line in pieces."""
        partial = self._partials.pop(fd, None)
        self._epoll.unregister(fd)
        since = self._active.pop(fd)
        stream = TcpStream(socket.socket(fileno=fd), sending=sending, taken=taken)
        client = Client(self._service, stream, self._sources.pop(fd, ANYONE), since)
        client.relayed = self._relayed.pop(fd, None)
        client.arrived = client.since  # it may have got an answer
        client.received = received
        if partial is not None:
            client.received = received or partial[0]
            client.first_byte = partial[1]
        self._service.counters_for(client.source).handovers[cause] += 1
        self._handovers.append(client)
        return client

    def _wake(self) -> None:
        """Let `accept` look at the hand-overs: no event on its epoll announced them."""
        if self._handovers:
            trio.lowlevel.notify_closing(self._epoll.fileno())


def _send_some(descriptor: int, data: bytes) -> int:
    """Send what fits, and return how many bytes the kernel took; -1 = the connection is broken."""
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        return 0
    except OSError:
        return -1
