"""The one handler that serves every client, whatever it came through.

A task of the handler reads, asks the protocol what the bytes mean, sends the answers, and counts. It
waits in two places only, each under a deadline: for the client's next bytes, and for the client to take
its answers.
"""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import accumulate

import trio
from structlog.typing import FilteringBoundLogger

from triojam.admission import ANYONE, Admission
from triojam.counters import Counters
from triojam.protocol import DRAIN_WINDOW, ERROR, ON_ITS_WAY, Connection, Outcome, Rules, Timeouts
from triojam.reasons import Disconnect, SendError
from triojam.streams import (
    LINGER_SECONDS,
    NO_BACKLOG,
    RECEIVE_BYTES,
    Backlog,
    ClientStream,
    HandshakeError,
    host_of,
    linger,
)

# Draining: how long a read may then still wait for what the kernel already holds.
LAST_READ = 0.001
# How long before the end of the grace time a client that is still in the middle of a line is told.
FAREWELL = 0.25

# Ends after which neither side has anything more to say.
_NOTHING_MORE = (Disconnect.EOF, Disconnect.IDLE, Disconnect.SEND_TIMEOUT)

LOGGED_LINE_CHARACTERS = 64


class _Client:
    """One connection: its stream, its protocol, and what it is waiting for."""

    __slots__ = ("backlog", "first_byte", "protocol", "scope", "since", "source", "stream")

    def __init__(self, stream: trio.abc.Stream, rules: Rules) -> None:
        self.stream = stream
        self.protocol = Connection(rules)
        self.backlog = stream.backlog if isinstance(stream, ClientStream) else NO_BACKLOG
        self.source = stream.source if isinstance(stream, ClientStream) else ANYONE
        since = self.backlog.since
        self.since = trio.current_time() if since is None else since  # idle, unless in the middle of a line
        self.first_byte = self.backlog.first_byte  # of the line it is in the middle of, or None
        self.scope = trio.CancelScope()  # around the wait for bytes


class Handler:
    """Serves clients; `handle` is what a listener's tasks run.

    jam: renders the current time as a whole answer line.
    timeouts, log: may be replaced at any time. New timeouts are for waits to come.
    """

    def __init__(  # noqa: PLR0913  # everything that a client is served with
        self,
        *,
        rules: Rules,
        timeouts: Timeouts,
        counters: Counters,
        admission: Admission,
        jam: Callable[[], bytes],
        log: FilteringBoundLogger,
    ) -> None:
        self._rules = rules
        self.timeouts = timeouts
        self.log = log
        self._counters = counters
        self._admission = admission
        self._jam = jam
        self._clients: set[_Client] = set()
        self._drain_began = math.inf
        self._drain_ends = math.inf
        self._turnstile = trio.Lock()

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one client until its connection ends; closes `stream`.

        The connection has been counted as opened; its end is counted here. Nothing but cancellation
        leaves: an exception ends this connection, is logged, counted, and touches nobody else.
        """
        client = _Client(stream, self._rules)
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
            self._admission.leave(client.source)
            self.log.debug("connection ended", peer=_peer(stream), reason=reason)
            await trio.aclose_forcefully(stream)

    def set_rules(self, rules: Rules) -> None:
        """Replace the rules, for the lines to come on every connection."""
        self._rules = rules
        for client in self._clients:
            client.protocol.rules = rules

    def enter_sources(self) -> None:
        """Count the connections that there are by source, which was not done while nothing was limited so."""
        for client in self._clients:
            if client.source is ANYONE and isinstance(client.stream, ClientStream):
                client.source = self._admission.enter(host_of(client.stream.peer))

    def drain(self, ends: float) -> None:
        """Answer what has been received, then close; what lasts beyond `ends` (Trio's time) is cut off.

        Idle clients are closed almost at once. A client in the middle of a line may finish it.
        """
        self._drain_began = trio.current_time()
        self._drain_ends = ends
        for client in self._clients:
            client.scope.deadline = self._deadline(client)

    async def _serve(self, client: _Client) -> Disconnect:
        if isinstance(client.stream, ClientStream) and (end := await self._begin(client, client.stream)):
            return end
        backlog = client.backlog
        data: bytes | None = backlog.received
        if backlog.unsent:
            self._count(client.protocol.receive(backlog.received, self._jam))  # the start of a line, at most
            answers = _split(backlog.unsent)
            if not await self._send(client, answers, backlog.due, backlog.arrived):
                return Disconnect.SEND_TIMEOUT
            client.since = trio.current_time()
            data = b""
        data = data or await self._receive(client)
        while True:
            arrived = trio.current_time()
            outcome = self._decide(client, data, arrived)
            self._count(outcome)
            due = outcome.requests - len(outcome.rejected)
            if outcome.answers and not await self._send(client, outcome.answers, due, arrived):
                return Disconnect.SEND_TIMEOUT
            client.since = trio.current_time()
            if outcome.end is None and self._drained(client, data):
                return Disconnect.DRAIN
            if outcome.end is not None:
                return outcome.end
            data = await self._receive(client)

    async def _begin(self, client: _Client, stream: ClientStream) -> Disconnect | None:
        """Let a stream do what comes before the first line, in the time of a line. Why, if it ends here."""
        first_byte, client.first_byte = client.first_byte, client.since
        with trio.CancelScope(deadline=self._deadline(client)) as client.scope:
            try:
                await stream.begin()
            except HandshakeError as exc:
                self.log.debug("handshake failed", peer=stream.peer, why=str(exc))
                return Disconnect.HANDSHAKE
            client.first_byte = first_byte
            return None
        overdue = trio.current_time() >= client.since + self.timeouts.line
        return Disconnect.LINE_TIMEOUT if overdue else Disconnect.DRAIN

    async def _receive(self, client: _Client) -> bytes | None:
        """Return the next bytes, b"" at the end of the stream, or None once the deadline has passed."""
        with trio.CancelScope(deadline=self._deadline(client)) as client.scope:
            # Trio's streams may give a bytearray; no stream here does, and bytes() of bytes is free.
            return bytes(await client.stream.receive_some(RECEIVE_BYTES))
        async with self._turnstile:
            # One after the other: if thousands are late at once, who is in time must not wait for them all.
            await trio.lowlevel.checkpoint()
        return None

    def _deadline(self, client: _Client) -> float:
        """Return until when the client may keep quiet, on Trio's clock."""
        if client.first_byte is not None:
            return min(client.first_byte + self.timeouts.line, self._drain_ends - FAREWELL)
        latest = max(
            self._drain_began + DRAIN_WINDOW, client.since + ON_ITS_WAY, trio.current_time() + LAST_READ
        )
        return min(client.since + self.timeouts.idle, latest)

    def _decide(self, client: _Client, data: bytes | None, arrived: float) -> Outcome:
        """Ask the protocol about what has happened, and keep track of the line that is in pieces."""
        if data is None:
            return self._overdue(client, arrived)
        if not data:
            return client.protocol.end_of_stream()
        permit = None
        if self._admission.limits_rate and client.source is not ANYONE:
            permit = partial(self._admission.take, client.source, arrived)
        outcome = client.protocol.receive(data, self._jam, permit)
        began = client.first_byte
        if began is not None and outcome.requests and outcome.end is not Disconnect.TOO_LONG:
            self._counters.request_receive.observe(arrived - began)
        if not client.protocol.midline:
            client.first_byte = None
        elif began is None or outcome.requests:
            client.first_byte = arrived
        return outcome

    def _overdue(self, client: _Client, now: float) -> Outcome:
        """Decide about a client that kept quiet for too long."""
        if client.first_byte is not None and now >= client.first_byte + self.timeouts.line:
            return client.protocol.line_timeout()
        if self._drain_began < math.inf:
            return client.protocol.drain()
        return Outcome(end=Disconnect.IDLE)

    def _drained(self, client: _Client, data: bytes | None) -> bool:
        """Whether a draining server has answered all that this client had sent."""
        over = trio.current_time() >= self._drain_began + DRAIN_WINDOW
        return over and not (data and _may_hold_more(client.stream, data)) and not client.protocol.midline

    def _count(self, outcome: Outcome) -> None:
        self._counters.requests += outcome.requests
        for reason, line in outcome.rejected:
            self._counters.rejected[reason] += 1
            if self.log.is_enabled_for(logging.DEBUG):
                self.log.debug("request rejected", reason=reason, line=printable(line))

    async def _send(self, client: _Client, answers: list[bytes], due: int, arrived: float) -> bool:
        """Send answers and account for the times that are `due` among them. False if they were not taken."""
        stream, counters = client.stream, self._counters
        before = _bytes_sent(stream)
        failure: SendError | None = SendError.RESET
        try:
            with trio.move_on_after(self.timeouts.send) as scope:
                await stream.send_all(b"".join(answers))
            failure = SendError.TIMEOUT if scope.cancelled_caught else None
        except trio.Cancelled:
            failure = SendError.SHUTDOWN
            raise
        finally:
            if failure is None:
                taken = due
            else:
                taken = _times_within(answers, _bytes_sent(stream) - before)
                counters.send_errors[failure] += due - taken
            if taken:
                counters.responses += taken
                counters.request_duration.observe(trio.current_time() - arrived, taken)
        return failure is None


def account_for_abandoned(backlog: Backlog, rules: Rules, counters: Counters) -> None:
    """Count what would have been due to a client that is closed before a handler could serve it."""
    connection = Connection(rules)
    counters.send_errors[SendError.SHUTDOWN] += backlog.due
    for outcome in (connection.receive(backlog.received, bytes), connection.drain()):
        counters.requests += outcome.requests
        counters.send_errors[SendError.SHUTDOWN] += outcome.requests - len(outcome.rejected)
        for reason, _ in outcome.rejected:
            counters.rejected[reason] += 1


def printable(line: bytes) -> str:
    """Render what a client sent for a log: escaped, and at most 64 characters of it."""
    text = line[:LOGGED_LINE_CHARACTERS].decode("latin-1").encode("unicode_escape").decode("ascii")
    return text[:LOGGED_LINE_CHARACTERS]


def _peer(stream: trio.abc.Stream) -> str:
    return stream.peer if isinstance(stream, ClientStream) else type(stream).__name__


def _bytes_sent(stream: trio.abc.Stream) -> int:
    """Return what the transport has taken; one that cannot tell has taken nothing of a failed send."""
    return stream.bytes_sent if isinstance(stream, ClientStream) else 0


def _may_hold_more(stream: trio.abc.Stream, data: bytes) -> bool:
    """Whether there may have been more to receive than `data`."""
    return stream.may_hold_more if isinstance(stream, ClientStream) else len(data) == RECEIVE_BYTES


def _times_within(answers: list[bytes], size: int) -> int:
    """Count the times that lie whole within the first `size` bytes of the answers."""
    ends = accumulate(map(len, answers))
    whole = (answer for answer, end in zip(answers, ends, strict=True) if end <= size)
    return sum(not answer.startswith(ERROR) for answer in whole)


def _split(unsent: bytes) -> list[bytes]:
    """Split times, the first of which may be cut, into one answer each."""
    return [line + b"\n" for line in unsent.split(b"\n")[:-1]]


async def _part(stream: trio.abc.Stream, reason: Disconnect) -> None:
    """Close so that the client gets what it is to get: its last answer, the end of the stream, or a reset."""
    if reason is Disconnect.SEND_TIMEOUT and isinstance(stream, ClientStream):
        stream.reset()
    elif reason not in _NOTHING_MORE:
        # The client may be gone by now, or reset: it ended for the reason that it had before.
        with trio.move_on_after(LINGER_SECONDS), suppress(trio.BrokenResourceError):
            if isinstance(stream, ClientStream):
                await stream.finish()
            elif isinstance(stream, trio.abc.HalfCloseableStream):
                await linger(stream)
    await stream.aclose()
