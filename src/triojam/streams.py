"""A client's connection as a Trio stream, and what Trio's own cannot do.

`trio.SocketStream` does not say how much of an interrupted `send_all` the kernel took, and the accounts must
be right to the last answer. And it has only one way to close, where a client that does not take its
answers must be reset, or the kernel keeps them for minutes.
"""

import os
import socket
import struct
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import trio
from trio import socket as tsocket

from triojam.admission import ANYONE, Source

# One read, and so one batch of answers (at most 2.4 times as large), bounds what a client costs in memory:
# the next read waits until the answers to this one are taken.
RECEIVE_BYTES = 16 * 1024

# After the last answer the server waits this long, and reads away this much, so that closing with
# unread input does not turn the answer into a reset for the client.
LINGER_SECONDS = 1.0
LINGER_BYTES = 1024 * 1024

# l_onoff = 1, l_linger = 0: close() sends RST and drops what is unsent (socket(7), SO_LINGER).
_LINGER_NONE = struct.pack("ii", 1, 0)

# How a socket that takes both kinds shows an IPv4 client (RFC 4291, 2.5.5.2).
MAPPED = "::ffff:"


def format_address(address: tuple[Any, ...]) -> str:
    """Render a socket address as host:port, an IPv6 host in brackets; an IPv4 client's as that of IPv4."""
    host, port = address[:2]
    if "." in host:
        host = host.removeprefix(MAPPED)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(peer: str) -> str:
    """Return the host of what `format_address` rendered."""
    return peer.rpartition(":")[0].strip("[]")


class Backlog(NamedTuple):
    """What has happened on a connection before the handler came to serve it. Times are in seconds.

    received: bytes that were read and not decided on; first_byte: when the first of them came, if they
        are a line in pieces, else None.
    unsent: answers that the kernel did not take; the first may be cut. due: how many times they are.
        arrived: when the requests had arrived.
    since: when it was accepted, or had its last answer; None = just now.
    """

    received: bytes = b""
    first_byte: float | None = None
    unsent: bytes = b""
    due: int = 0
    arrived: float = 0.0
    since: float | None = None

    def moved(self, offset: float) -> "Backlog":
        """Return the same on another clock, which is ahead by `offset`."""
        first_byte = None if self.first_byte is None else self.first_byte + offset
        since = None if self.since is None else self.since + offset
        return self._replace(first_byte=first_byte, arrived=self.arrived + offset, since=since)


NO_BACKLOG = Backlog()


class HandshakeError(Exception):
    """What comes before a client's first line has failed. The text says why, in the words of the library."""


class ClientStream(trio.abc.Stream):
    """An accepted connection, and what its handler must know and do beyond `trio.abc.Stream`.

    peer: the client's address, for the log.
    bytes_sent: of what was to be sent, how much can arrive whole, also of a `send_all` that did not finish.
    source: where it comes from, with this connection counted; changed when limits by source begin to be.
    backlog: what the handler takes over from whoever served the connection before.
    may_hold_more: whether more may have arrived than the last `receive_some` has given.
    """

    def __init__(self, peer: str, source: Source = ANYONE, backlog: Backlog = NO_BACKLOG) -> None:
        self.peer = peer
        self.source = source
        self.bytes_sent = 0
        self.backlog = backlog
        self.may_hold_more = False

    @abstractmethod
    async def begin(self) -> None:
        """Do what comes before the first line. Raises HandshakeError or trio.BrokenResourceError."""

    @abstractmethod
    async def finish(self) -> None:
        """End the sending side so that the client gets what was sent last, although it may go on sending.

        Waits for the end of the client's side, so it needs a deadline. Raises trio.BrokenResourceError.
        """

    @abstractmethod
    def reset(self) -> None:
        """Close at once with RST; what was not delivered is dropped."""


class TcpStream(ClientStream, trio.abc.HalfCloseableStream):
    """A TCP connection. Semantics and errors are those of `trio.abc.HalfCloseableStream`."""

    def __init__(
        self, sock: tsocket.SocketType, peer: str, source: Source = ANYONE, backlog: Backlog = NO_BACKLOG
    ) -> None:
        super().__init__(peer, source, backlog)
        # Trio's stream sets TCP_NODELAY and TCP_NOTSENT_LOWAT, and does all that needs no counting.
        self._stream = trio.SocketStream(sock)
        self._sending = False

    @classmethod
    def adopt(cls, descriptor: int, source: Source, backlog: Backlog) -> Self:
        """Make the stream of a connected socket's descriptor, which is owned by the stream from then on."""
        sock = trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor))
        try:
            peer = format_address(sock.getpeername())
        except OSError:  # the client is gone already
            peer = "unknown"
        return cls(sock, peer, source, backlog)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""
        sock = self._stream.socket
        if sock.did_shutdown_SHUT_WR or sock.fileno() == -1:
            raise trio.ClosedResourceError("the sending side is closed")
        with self._only_sender(), memoryview(data) as rest:
            sent = 0
            while sent < len(rest):
                try:
                    taken = await sock.send(rest[sent:])
                except OSError as exc:
                    raise trio.BrokenResourceError(f"connection broken: {exc}") from exc
                sent += taken
                self.bytes_sent += taken
            if not sent:
                await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room."""
        with self._only_sender():
            await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """End the sending side."""
        with self._only_sender():
            await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte and at most `max_bytes`, or b"" at the end of the stream."""
        data = await self._stream.receive_some(max_bytes)
        self.may_hold_more = len(data) == max_bytes
        return bytes(data)  # of bytes it is free, and Trio's SocketStream gives no other

    async def begin(self) -> None:
        """Do nothing: a client of plain TCP may speak at once."""

    async def finish(self) -> None:
        """End the sending side, and read away what the client still sends."""
        await linger(self)

    async def aclose(self) -> None:
        """Close; the kernel goes on delivering what it took."""
        await self._stream.aclose()

    def reset(self) -> None:
        """Close at once with RST; what was not delivered is dropped."""
        sock = self._stream.socket
        if sock.fileno() != -1:
            sock.setsockopt(tsocket.SOL_SOCKET, tsocket.SO_LINGER, _LINGER_NONE)
            sock.close()

    @contextmanager
    def _only_sender(self) -> Iterator[None]:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            yield
        finally:
            self._sending = False


async def linger(stream: trio.abc.HalfCloseableStream) -> None:
    """End the sending side, then read away what comes, up to a limit. Raises trio.BrokenResourceError."""
    await stream.send_eof()
    unread = LINGER_BYTES
    while unread > 0 and (data := await stream.receive_some(RECEIVE_BYTES)):
        unread -= len(data)


def send_some(descriptor: int, data: bytes) -> int:
    """Send what fits, and return how many bytes the kernel took; -1 = the connection is broken."""
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        return 0
    except OSError:
        return -1
