"""A client of the server under fuzz, and what the model expects of its connection."""

import socket
import struct
from dataclasses import dataclass, field

import trio

from tests.fuzz.oracle import Oracle
from tests.helpers.servers import TlsClient, raw

# l_onoff = 1, l_linger = 0: close() sends RST (socket(7), SO_LINGER).
LINGER_NONE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Peer:
    """One client. Its reader reads all the time, unless it is paused.

    oracle: what the protocol makes of what was sent. expected: the bytes that must have come by now.
    idle_since, first_byte: when its last answer came, and the first byte of the line it is in, or None.
    ended, ended_at: why and when the server ended the connection. gone: whether that is counted.
    silent: whether it has never sent anything; told_nothing: and the server ended it without waiting for it.
    flood: how many requests were sent that the server may not have read; flood_since: when; times: their
        answers. cut: whether that ended early. late: whether a reset may have cost it answers.
    """

    stream: trio.abc.HalfCloseableStream
    oracle: Oracle
    idle_since: float
    first_byte: float | None = None
    expected: bytes = b""
    ended: str | None = None
    ended_at: float = 0.0
    gone: bool = False
    silent: bool = True
    told_nothing: bool = False
    half_closed: bool = False
    closed: bool = False
    late: bool = False
    flood: int = 0
    flood_since: float = 0.0
    cut: bool = False
    times: set[bytes] = field(default_factory=set)
    received: bytes = b""
    finished: bool = False
    _reading: trio.Event = field(default_factory=trio.Event)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def on_socket(self) -> bool:
        """Whether there is a kernel between it and the server, which has buffers and can reset."""
        return isinstance(self.stream, trio.SocketStream | TlsClient)

    @property
    def paused(self) -> bool:
        """Whether it does not read."""
        return not self._reading.is_set()

    @property
    def may_send(self) -> bool:
        """Whether it can send, and the model can follow."""
        return not (self.closed or self.half_closed or self.flood)

    async def read(self) -> None:
        """Read until the server has closed, whatever way."""
        while not self.finished:
            await self._reading.wait()
            with trio.CancelScope() as self._scope:
                try:
                    data = await self.stream.receive_some()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    data = b""
                self.received += data
                self.finished = not data

    def resume(self) -> None:
        """Read, or read on."""
        self._reading.set()

    def pause(self) -> None:
        """Stop reading."""
        if not self.paused:
            self._reading = trio.Event()
            self._scope.cancel()

    async def send(self, data: bytes) -> None:
        """Send; a server that has closed cannot be told."""
        self.silent = False
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.late = True

    async def half_close(self) -> None:
        """End the sending side."""
        self.half_closed = True
        try:
            await self.stream.send_eof()
        except trio.BrokenResourceError:
            self.late = True

    async def close(self, *, reset: bool = False) -> None:
        """Close, or reset."""
        self.closed = True
        if reset:
            raw(self.stream).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
        await trio.aclose_forcefully(self.stream)
        self.resume()
