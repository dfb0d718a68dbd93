"""What the soak's clients have in common: where they connect to, and what they keep account of."""

import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from tests.helpers.scrape import Address

JAM_SIZE = len(b"JAM hh:mm:ss\r\n")
DAY = 86_400
# An honest client that has no answer by then has been let down, in seconds: it is lost, not late. A whole
# process may start meanwhile, on a machine that has much else to do.
PATIENCE = 30.0
# How many of those who may use either port use TLS.
TLS_PART = 0.3
# How long it then rests, so that a server that is down does not fill the machine.
FRUSTRATION = 0.1

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class LetDownError(Exception):
    """An honest client did not get what it was due; the text says how."""


class GoodbyeError(LetDownError):
    """The server ended the stream in order, before any of the answers."""


@dataclass
class Tally:
    """What honest clients sent and got.

    longest: how long an answer took at most, in seconds. failures: by what went wrong.
    """

    sent: int = 0
    answered: int = 0
    rejected: int = 0
    longest: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Take over another's figures."""
        self.sent += other.sent
        self.answered += other.answered
        self.rejected += other.rejected
        self.longest = max(self.longest, other.longest)
        self.failures += other.failures


@dataclass(frozen=True)
class Target:
    """Where a server is. trust: the certificate authority of its TLS port."""

    plain: Address
    tls: Address
    web: Address
    trust: ssl.SSLContext


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client of a stretch of the run.

    source: the loopback address it connects from. ends: when it is to finish what it has begun, on Trio's
    clock.
    """

    target: Target
    source: str
    chance: random.Random
    ends: float
    tally: Tally

    @property
    def goes_on(self) -> bool:
        """Whether it is to begin something new."""
        return trio.current_time() < self.ends

    async def connect(self) -> trio.SocketStream:
        """Connect to the plain port."""
        return await self._connect(self.target.plain)

    async def connect_tls(self, *, receive_buffer: int | None = None) -> trio.SSLStream[trio.SocketStream]:
        """Connect to the TLS port; the handshake comes with the first use."""
        stream = await self._connect(self.target.tls, receive_buffer)
        return trio.SSLStream(stream, self.target.trust, server_hostname="localhost", https_compatible=True)

    async def connect_either(self, *, receive_buffer: int | None = None) -> Stream:
        """Connect to the plain port or the TLS port. receive_buffer: in bytes, if not the system's choice."""
        if self.chance.random() < TLS_PART:
            return await self.connect_tls(receive_buffer=receive_buffer)
        return await self._connect(self.target.plain, receive_buffer)

    async def connect_web(self) -> trio.SocketStream:
        """Connect to the web listener."""
        return await self._connect(self.target.web)

    async def _connect(self, address: Address, receive_buffer: int | None = None) -> trio.SocketStream:
        sock = trio.socket.socket()
        try:
            if receive_buffer is not None:  # before it is connected, or it is too late (tcp(7))
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
        """Send requests, which may be cut anywhere, and take the answers. Raises LetDownError.

        times, errors: how many lines are to be answered with the time, and how many with an error.
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
            raise LetDownError(f"no answer within {PATIENCE:g} s")
        told = [line for line in lines if line.startswith(b"JAM ")]
        if len(told) != times:
            raise LetDownError(f"{len(told)} times instead of {times}, among {lines[:3]}")
        for line in told:
            check_time(line, asked, time.time())
        self.tally.longest = max(self.tally.longest, trio.current_time() - began)
        self.tally.answered += times
        self.tally.rejected += errors


Visit = Callable[[Client], Awaitable[None]]


async def comes_until_the_end(visit: Visit, client: Client) -> None:
    """Visit again and again; whatever an honest client has to bear is put down."""
    while client.goes_on:
        try:
            await visit(client)
        except (OSError, trio.BrokenResourceError, LetDownError) as exc:
            client.tally.failures[f"{exc!r}"] += 1
            await trio.sleep(FRUSTRATION)


async def _receive_lines(stream: Stream, count: int) -> list[bytes]:
    received = b""
    while (complete := received.count(b"\n")) < count:
        data = await stream.receive_some(65_536)
        if not data:
            error = LetDownError if received else GoodbyeError
            raise error(f"the stream ended after {complete} of {count} answers")
        received += data
    lines = received.splitlines(keepends=True)
    if len(lines) != count:
        raise LetDownError(f"{len(lines)} lines instead of {count}")
    return lines


def check_time(line: bytes, asked: float, now: float) -> None:
    """Hold an answer against the clock: it is of a second between these two. Raises LetDownError."""
    if len(line) != JAM_SIZE or not line.endswith(b"\r\n"):
        raise LetDownError(f"{line!r} is no answer")
    hours, minutes, seconds = map(int, line[4:12].split(b":"))
    late = (hours * 3600 + minutes * 60 + seconds - int(asked)) % DAY
    if late > int(now) - int(asked):
        raise LetDownError(f"the time told is {late} s after the second of the request")
