"""A client's TCP connection as a Trio stream, and two things that Trio's own cannot do.

`trio.SocketStream` does not say how much of an interrupted `send_all` the kernel took, and the accounts must
be right to the last answer. And it has only one way to close, where a client that does not take its
answers must be reset, or the kernel keeps them for minutes.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from trio import socket as tsocket

# l_onoff = 1, l_linger = 0: close() sends RST and drops what is unsent (socket(7), SO_LINGER).
_LINGER_NONE = struct.pack("ii", 1, 0)


class ClientStream(trio.abc.HalfCloseableStream):
    """An accepted TCP connection. Semantics and errors are those of `trio.abc.HalfCloseableStream`.

    peer: the client's address, for the log.
    bytes_sent: how many bytes the kernel has taken, also from a `send_all` that did not finish.
    """

    def __init__(self, sock: tsocket.SocketType, peer: str) -> None:
        # Trio's stream sets TCP_NODELAY and TCP_NOTSENT_LOWAT, and does all that needs no counting.
        self._stream = trio.SocketStream(sock)
        self.peer = peer
        self.bytes_sent = 0
        self._sending = False

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
        return await self._stream.receive_some(max_bytes)

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
