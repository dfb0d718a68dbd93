"""What all clients of the soak share: their connections and their counts."""

import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from tests.helpers.sockets import JAM_BYTES, Address

DAY = 86_400
# An answer later than this, in seconds, counts as lost. A process may start meanwhile on a busy machine.
PATIENCE = 30.0
# The part of the connections over TLS, for clients that use both ports.
TLS_PART = 0.3
# The pause after a failure, so that clients of a dead server do not use up the processor.
RETRY_PAUSE = 0.1

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class AnswerError(Exception):
    """An honest client did not get the right answers."""


class EndOfStreamError(AnswerError):
    """The server ended the stream orderly before the first answer."""


@dataclass
class Tally:
    """What honest clients sent and received.

    longest: the longest time of an answer, in seconds. failures: their number by reason.
    """

    sent: int = 0
    answered: int = 0
    rejected: int = 0
    longest: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Add the counts of another tally."""
        self.sent += other.sent
        self.answered += other.answered
        self.rejected += other.rejected
        self.longest = max(self.longest, other.longest)
        self.failures += other.failures


@dataclass(frozen=True)
class Target:
    """The addresses of a server. trust: a context that trusts the certificate of its TLS port."""

    plain: Address
    tls: Address
    web: Address
    trust: ssl.SSLContext


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client in one part of the run.

    source: the loopback address from which it connects. ends: on the clock of Trio.
    """

    target: Target
    source: str
    chance: random.Random
    ends: float
    tally: Tally

    @property
    def goes_on(self) -> bool:
        """Whether it starts something new."""
        return trio.current_time() < self.ends

    async def connect(self) -> trio.SocketStream:
        """Connect to the plain port."""
        return await self._connect(self.target.plain)

    async def connect_tls(self, *, receive_buffer: int | None = None) -> trio.SSLStream[trio.SocketStream]:
        """Connect to the TLS port; the first use shakes hands."""
        stream = await self._connect(self.target.tls, receive_buffer)
        return trio.SSLStream(stream, self.target.trust, server_hostname="localhost", https_compatible=True)

    async def connect_either(self, *, receive_buffer: int | None = None) -> Stream:
        """Connect to the plain port or the TLS port. receive_buffer: bytes; None = the default."""
        if self.chance.random() < TLS_PART:
            return await self.connect_tls(receive_buffer=receive_buffer)
        return await self._connect(self.target.plain, receive_buffer)

    async def connect_web(self) -> trio.SocketStream:
        """Connect to the web listener."""
        return await self._connect(self.target.web)

    async def _connect(self, address: Address, receive_buffer: int | None = None) -> trio.SocketStream:
        sock = trio.socket.socket()
        try:
            if receive_buffer is not None:  # works only before connect (tcp(7))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            await sock.bind((self.source, 0))
            await sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)

    async def ask(
        self, stream: Stream, pieces: Sequence[bytes], times: int, errors: int = 0, *, end: bool = False
    ) -> None:
        """Send requests in any pieces, and receive the answers. Raises AnswerError.

        times, errors: the number of lines that get a time, and of lines that get an error.
        end: end the sending side of a TCP stream before reading.
        """
        asked, began = time.time(), trio.current_time()
        self.tally.sent += times + errors
        with trio.move_on_after(PATIENCE) as patience:
            for piece in pieces:
                await stream.send_all(piece)
                if piece is not pieces[-1]:
                    await trio.sleep(self.chance.uniform(0, 0.005))
            if end:
                assert isinstance(stream, trio.SocketStream)
                await stream.send_eof()
            lines = await _receive_lines(stream, times + errors)
        if patience.cancelled_caught:
            raise AnswerError(f"no answer within {PATIENCE:g} s")
        told = [line for line in lines if line.startswith(b"JAM ")]
        if len(told) != times:
            raise AnswerError(f"{len(told)} times instead of {times}, among {lines[:3]}")
        for line in told:
            check_time(line, asked, time.time())
        self.tally.longest = max(self.tally.longest, trio.current_time() - began)
        self.tally.answered += times
        self.tally.rejected += errors


Visit = Callable[[Client], Awaitable[None]]


async def repeat_until_the_end(visit: Visit, client: Client) -> None:
    """Repeat a visit until the time of the client is over, and record all failures."""
    while client.goes_on:
        try:
            await visit(client)
        except (OSError, trio.BrokenResourceError, AnswerError) as exc:
            client.tally.failures[f"{exc!r}"] += 1
            await trio.sleep(RETRY_PAUSE)


async def _receive_lines(stream: Stream, count: int) -> list[bytes]:
    received = b""
    while (complete := received.count(b"\n")) < count:
        data = await stream.receive_some(65_536)
        if not data:
            error = AnswerError if received else EndOfStreamError
            raise error(f"the stream ended after {complete} of {count} answers")
        received += data
    lines = received.splitlines(keepends=True)
    if len(lines) != count:
        raise AnswerError(f"{len(lines)} lines instead of {count}")
    return lines


def check_time(line: bytes, asked: float, now: float) -> None:
    """Check that an answer has a second between these two moments. Raises AnswerError."""
    if len(line) != JAM_BYTES or not line.endswith(b"\r\n"):
        raise AnswerError(f"not an answer: {line!r}")
    hours, minutes, seconds = map(int, line[4:12].split(b":"))
    late = (hours * 3600 + minutes * 60 + seconds - int(asked)) % DAY
    if late > int(now) - int(asked):
        raise AnswerError(f"the time is {late} s after the second of the request")
