"""The one handler that serves every client, whatever it came through.

A task of the handler reads, asks the protocol what the bytes mean, sends the answers, and counts. It
waits in two places only, each under a deadline: for the client's next bytes, and for the client to take
its answers.
"""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate

import trio
from structlog.typing import FilteringBoundLogger

from triojam.counters import Counters
from triojam.protocol import JAM, Connection, Outcome, Rules
from triojam.reasons import Disconnect, SendError
from triojam.streams import ClientStream

# One read, and so one batch of answers (at most 2.4 times as large), bounds what a client costs in memory:
# the next read waits until the answers to this one are taken.
RECEIVE_BYTES = 16 * 1024

# After the last answer the server waits this long, and reads away this much, so that closing with
# unread input does not turn the answer into a reset for the client.
LINGER_SECONDS = 1.0
LINGER_BYTES = 1024 * 1024

# Draining: how long an idle client has for a request that is on its way, and then how long a read may
# wait for what the kernel already holds.
DRAIN_WINDOW = 0.05
LAST_READ = 0.001
# How long before the end of the grace time a client that is still in the middle of a line is told.
FAREWELL = 0.25

# Ends after which neither side has anything more to say.
_NOTHING_MORE = (Disconnect.EOF, Disconnect.IDLE, Disconnect.SEND_TIMEOUT)

LOGGED_LINE_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a client may take, in seconds; `math.inf` = for ever.

    idle: without the first byte of a request.
    line: from the first byte of a line to its LF.
    send: to take the answers to one read.
    """

    idle: float = 60.0
    line: float = 10.0
    send: float = 10.0


class _Client:
    """One connection: its stream, its protocol, and what it is waiting for."""

    __slots__ = ("first_byte", "protocol", "scope", "since", "stream")

    def __init__(self, stream: trio.abc.Stream, rules: Rules) -> None:
        self.stream = stream
        self.protocol = Connection(rules)
        self.since = trio.current_time()  # idle since, unless in the middle of a line
        self.first_byte = 0.0  # of the line it is in the middle of
        self.scope = trio.CancelScope()  # around the wait for bytes


class Handler:
    """Serves clients; `handle` is what a listener's tasks run.

    jam: renders the current time as a whole answer line.
    rules, timeouts, log: may be replaced at any time. New rules are for connections to come, new timeouts
        for waits to come.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        timeouts: Timeouts,
        counters: Counters,
        jam: Callable[[], bytes],
        log: FilteringBoundLogger,
    ) -> None:
        self.rules = rules
        self.timeouts = timeouts
        self.log = log
        self._counters = counters
        self._jam = jam
        self._clients: set[_Client] = set()
        self._drain_began = math.inf
        self._drain_ends = math.inf

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one client until its connection ends; closes `stream`.

        The connection has been counted as opened; its end is counted here. Nothing but cancellation
        leaves: an exception ends this connection, is logged, counted, and touches nobody else.
        """
        client = _Client(stream, self.rules)
        self._clients.add(client)
        reason: Disconnect | None = None
        try:
            reason = await self._serve(client)
            await _part(stream, reason)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            reason = Disconnect.RESET
            self._count(client.protocol.end_of_stream())  # a line cut off is a request, too
        except trio.Cancelled:
            reason = reason or Disconnect.DRAIN
            self._count(client.protocol.drain())
            raise
        except Exception:
            reason = Disconnect.INTERNAL_ERROR
            self._counters.internal_errors += 1
            self._count(client.protocol.end_of_stream())
            self.log.exception("connection failed", peer=_peer(stream))
        finally:
            self._clients.remove(client)
            self._counters.closed(reason or Disconnect.INTERNAL_ERROR)
            self.log.debug("connection ended", peer=_peer(stream), reason=reason)
            await trio.aclose_forcefully(stream)

    def drain(self, ends: float) -> None:
        """Answer what has been received, then close; what lasts beyond `ends` (Trio's time) is cut off.

        Idle clients are closed almost at once. A client in the middle of a line may finish it.
        """
        self._drain_began = trio.current_time()
        self._drain_ends = ends
        for client in self._clients:
            client.scope.deadline = self._deadline(client)

    async def _serve(self, client: _Client) -> Disconnect:
        while True:
            data = await self._receive(client)
            arrived = trio.current_time()
            outcome = self._decide(client, data, arrived)
            self._count(outcome)
            if outcome.answers and not await self._send(client, outcome, arrived):
                return Disconnect.SEND_TIMEOUT
            client.since = trio.current_time()
            if outcome.end is None and self._drained(client, data):
                return Disconnect.DRAIN
            if outcome.end is not None:
                return outcome.end

    async def _receive(self, client: _Client) -> bytes | None:
        """Return the next bytes, b"" at the end of the stream, or None once the deadline has passed."""
        with trio.CancelScope(deadline=self._deadline(client)) as client.scope:
            # Trio's streams may give a bytearray; no stream here does, and bytes() of bytes is free.
            return bytes(await client.stream.receive_some(RECEIVE_BYTES))
        return None

    def _deadline(self, client: _Client) -> float:
        """Return until when the client may keep quiet, on Trio's clock."""
        if client.protocol.midline:
            latest = self._drain_ends - FAREWELL
            return min(client.first_byte + self.timeouts.line, latest)
        latest = max(self._drain_began + DRAIN_WINDOW, trio.current_time() + LAST_READ)
        return min(client.since + self.timeouts.idle, latest)

    def _decide(self, client: _Client, data: bytes | None, arrived: float) -> Outcome:
        """Ask the protocol about what has happened, and keep track of the line that is in pieces."""
        if data is None:
            return self._overdue(client, arrived)
        if not data:
            return client.protocol.end_of_stream()
        was_midline = client.protocol.midline
        outcome = client.protocol.receive(data, self._jam)
        if was_midline and outcome.requests and outcome.end is not Disconnect.TOO_LONG:
            self._counters.request_receive.observe(arrived - client.first_byte)
        if not was_midline or outcome.requests:
            client.first_byte = arrived
        return outcome

    def _overdue(self, client: _Client, now: float) -> Outcome:
        """Decide about a client that kept quiet for too long."""
        if client.protocol.midline and now >= client.first_byte + self.timeouts.line:
            return client.protocol.line_timeout()
        if self._drain_began < math.inf:
            return client.protocol.drain()
        return Outcome(end=Disconnect.IDLE)

    def _drained(self, client: _Client, data: bytes | None) -> bool:
        """Whether a draining server has answered all that this client had sent."""
        over = trio.current_time() >= self._drain_began + DRAIN_WINDOW
        emptied = data is None or len(data) < RECEIVE_BYTES
        return over and emptied and not client.protocol.midline

    def _count(self, outcome: Outcome) -> None:
        self._counters.requests += outcome.requests
        for reason, line in outcome.rejected:
            self._counters.rejected[reason] += 1
            if self.log.is_enabled_for(logging.DEBUG):
                self.log.debug("request rejected", reason=reason, line=printable(line))

    async def _send(self, client: _Client, outcome: Outcome, arrived: float) -> bool:
        """Send the answers and account for every time among them. False if the client did not take them."""
        stream, counters = client.stream, self._counters
        due = outcome.requests - len(outcome.rejected)
        before = _bytes_sent(stream)
        failure: SendError | None = SendError.RESET
        try:
            with trio.move_on_after(self.timeouts.send) as scope:
                await stream.send_all(b"".join(outcome.answers))
            failure = SendError.TIMEOUT if scope.cancelled_caught else None
        except trio.Cancelled:
            failure = SendError.SHUTDOWN
            raise
        finally:
            if failure is None:
                taken = due
            else:
                taken = _times_within(outcome.answers, _bytes_sent(stream) - before)
                counters.send_errors[failure] += due - taken
            if taken:
                counters.responses += taken
                counters.request_duration.observe(trio.current_time() - arrived, taken)
        return failure is None


def printable(line: bytes) -> str:
    """Render what a client sent for a log: escaped, and at most 64 characters of it."""
    text = line[:LOGGED_LINE_CHARACTERS].decode("latin-1").encode("unicode_escape").decode("ascii")
    return text[:LOGGED_LINE_CHARACTERS]


def _peer(stream: trio.abc.Stream) -> str:
    return stream.peer if isinstance(stream, ClientStream) else type(stream).__name__


def _bytes_sent(stream: trio.abc.Stream) -> int:
    """Return what the transport has taken; one that cannot tell has taken nothing of a failed send."""
    return stream.bytes_sent if isinstance(stream, ClientStream) else 0


def _times_within(answers: list[bytes], size: int) -> int:
    """Count the times that lie whole within the first `size` bytes of the answers."""
    ends = accumulate(map(len, answers))
    return sum(answer.startswith(JAM) for answer, end in zip(answers, ends, strict=True) if end <= size)


async def _part(stream: trio.abc.Stream, reason: Disconnect) -> None:
    """Close so that the client gets what it is to get: its last answer, the end of the stream, or a reset."""
    if reason is Disconnect.SEND_TIMEOUT and isinstance(stream, ClientStream):
        stream.reset()
    elif reason not in _NOTHING_MORE and isinstance(stream, trio.abc.HalfCloseableStream):
        # The client may be gone by now, or reset: it ended for the reason that it had before.
        with trio.move_on_after(LINGER_SECONDS), suppress(trio.BrokenResourceError):
            await stream.send_eof()
            unread = LINGER_BYTES
            while unread > 0 and (data := await stream.receive_some(RECEIVE_BYTES)):
                unread -= len(data)
    await stream.aclose()
