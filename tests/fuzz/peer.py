"""A client of the fuzzed server, and what the model expects of its connection."""

from dataclasses import dataclass, field

import trio

from tests.fuzz.oracle import Oracle
from tests.helpers.servers import TlsClient, raw
from tests.helpers.sockets import reset_on_close


@dataclass(eq=False)
class Peer:
    """One client. Its reader reads all the time, unless it is paused.

    oracle: what the protocol says about the bytes sent. expected: the bytes that must have come by now.
    idle_since: the time of the last answer. first_byte: that of the first byte of the line.
    ended, ended_at: why and when the server ended the connection.
    silent: it has never sent anything. told_nothing: and the server closed it without waiting.
    flood: the number of requests that the server may not have read. flood_since: when they were sent.
    times: their possible answers. cut: the flood ended early. late: a reset may have destroyed answers.
    """

    stream: trio.abc.HalfCloseableStream
    oracle: Oracle
    idle_since: float
    first_byte: float | None = None
    expected: bytes = b""
    ended: str | None = None
    ended_at: float = 0.0
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
        """Whether it is connected through the kernel, which has buffers and can reset."""
        return isinstance(self.stream, trio.SocketStream | TlsClient)

    @property
    def paused(self) -> bool:
        """Whether it does not read."""
        return not self._reading.is_set()

    @property
    def may_send(self) -> bool:
        """Whether it can send in a way that the model can follow."""
        return not (self.closed or self.half_closed or self.flood)

    async def read(self) -> None:
        """Read until the server has closed or reset the connection."""
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
        """Start reading, or read again."""
        self._reading.set()

    def pause(self) -> None:
        """Stop reading."""
        if not self.paused:
            self._reading = trio.Event()
            self._scope.cancel()

    async def send(self, data: bytes) -> None:
        """Send. The server may have closed already."""
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
            reset_on_close(raw(self.stream))
        await trio.aclose_forcefully(self.stream)
        self.resume()
