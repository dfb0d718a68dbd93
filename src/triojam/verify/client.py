"""A judge's connection to a server: what it sends, what comes back, and how long it waits."""

import os
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby
from math import inf

import trio

from triojam.client.session import AskError, read_answer
from triojam.core.protocol import SHOWN_CHARACTERS, printable

# A time in an answer, also if the form of the answer is not exactly right.
TIME_OF_DAY = re.compile(rb"(?i)\bJAM\W{0,3}(\d{1,2})\D(\d{1,2})\D(\d\d|\d(?=\D))")

SLOWER = 10  # a server is silent after this many times its slowest answer
SLOWER_BESIDE = 3  # others may wait this many times the slowest answer beside a hostile client
LAST_LOOK = 0.25
MOST_BYTES = 1 << 20
MOST_KEPT = 1024  # of bytes that are only shown
MOST_SHOWN = 4


class End(Enum):
    """Why a client stopped receiving."""

    ENOUGH = auto()
    CLOSED = auto()
    RESET = auto()
    SILENT = auto()


class Broken(Exception):  # noqa: N818  # a rule is broken; the judge made no error
    """A rule does not hold; the text says why. client: the connection that shows it."""

    def __init__(self, reason: str, client: "Client | None" = None) -> None:
        super().__init__(reason)
        self.client = client


@dataclass
class Pace:
    """How long a judge waits, which depends on the server.

    A server is silent if nothing came for a fifth of the patience, and for ten times its slowest answer so
    far. If it serves clients side by side, a control client must have got its answer meanwhile: a machine
    that stood still is not a silent server.

    patience: how long to wait for a connection, and at most for an answer, in seconds. slowest: the slowest
    answer to a lone client so far, in seconds. control: asks with another client, which would have to wait if
    it is None.
    """

    patience: float = 5.0
    slowest: float = 0.0
    control: Callable[[], Awaitable[object]] | None = None

    @property
    def reaction(self) -> float:
        """How long others may wait beside a hostile client: by default a second; longer for slow servers."""
        return min(max(self.patience / 5, SLOWER_BESIDE * self.slowest), self.patience)

    @property
    def silence(self) -> float:
        """How long to wait before a server may be called silent."""
        return min(max(self.patience / 5, SLOWER * self.slowest), self.patience)


class Client:
    """One connection. received: all bytes that came so far. end: how the server ended it, if it did."""

    def __init__(self, pace: Pace, stream: trio.abc.Stream) -> None:
        self._pace = pace
        self._stream = stream
        self._sent: list[bytes] = []
        self.end: End | None = None
        self.received = bytearray()

    @property
    def tcp(self) -> trio.SocketStream:
        """The TCP connection, below TLS if there is TLS."""
        stream = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        assert isinstance(stream, trio.SocketStream)  # noqa: S101  # for the types
        return stream

    @property
    def times(self) -> int:
        """How many times of day came."""
        return len(TIME_OF_DAY.findall(bytes(self.received)))

    @property
    def sent(self) -> str:
        """What was sent, in printable pieces."""
        pieces = []
        for data, same in groupby(self._sent):
            times = sum(1 for _ in same)
            pieces.append(quoted(data) if times == 1 else f"{times} times {quoted(data)}")
        more = [f"and {len(pieces) - MOST_SHOWN} more"] if len(pieces) > MOST_SHOWN else []
        return ", ".join(pieces[:MOST_SHOWN] + more) or "nothing"

    @property
    def came(self) -> str:
        """What came back, and how the connection ended."""
        ends = {End.CLOSED: "closed", End.RESET: "reset"}
        parts = [quoted(bytes(self.received))] if self.received else []
        if self.end in ends:
            parts.append(ends[self.end])
        return ", ".join(parts) or "nothing"

    async def send(self, data: bytes, *, patience: float | None = None) -> bool:
        """Send, and return whether the server still took it. patience: None = that of the pace."""
        self._sent.append(data)
        with trio.move_on_after(patience or self._pace.patience), suppress(trio.BrokenResourceError):
            await self._stream.send_all(data)
            return True
        return False

    async def send_pieces(self, pieces: Sequence[bytes], gap: float) -> None:
        """Send pieces that arrive one by one."""
        for place, piece in enumerate(pieces):
            if place:
                await trio.sleep(gap)
            if not await self.send(piece):
                return

    async def end_sending(self) -> None:
        """End the sending side, without a close_notify over TLS, as most clients do."""
        with suppress(trio.BrokenResourceError):
            await self.tcp.send_eof()

    def reset(self) -> None:
        """Reset the connection instead of closing it."""
        self._reset_on_close()
        self.tcp.socket.close()

    async def receive(
        self, enough: Callable[[bytearray], object], *, patient: bool = False, wanted: bool = True
    ) -> End:
        """Receive until all that came is `enough`, the connection ends, or the server is silent.

        patient: wait for the whole patience. wanted: False if the right reply is none: wait half as long.
        """
        pace = self._pace
        waits = [pace.patience if patient else pace.silence if wanted else pace.silence / 2]
        if pace.control is not None and not patient:
            waits.append(LAST_LOOK)
        ends = trio.current_time() + 2 * pace.patience  # whatever comes
        while not enough(self.received) and len(self.received) < MOST_BYTES:
            if (data := await self._receive_some(waits[0])) is None:
                if len(waits) == 1 or trio.current_time() > ends:
                    return End.SILENT
                if pace.control is not None:
                    await pace.control()
                del waits[0]
            elif not data:
                self.end = self.end or End.CLOSED
                return self.end
            elif trio.current_time() > ends:
                return End.SILENT
            else:
                self.received += data
        return End.ENOUGH

    async def receive_times(self, times: int = 1, *, patient: bool = False) -> End:
        """Receive until this number of times has come."""
        return await self.receive(lambda data: len(TIME_OF_DAY.findall(data)) >= times, patient=patient)

    async def discard(self) -> None:
        """Receive until the end, and keep only the first bytes."""
        while data := await self._receive_some(inf):
            self.received += data[: max(MOST_KEPT - len(self.received), 0)]

    async def _receive_some(self, seconds: float) -> bytes | bytearray | None:
        """Return bytes, none of them at the end, and None if nothing came."""
        with trio.move_on_after(seconds):
            try:
                return await self._stream.receive_some()
            except trio.BrokenResourceError:
                self.end = End.RESET
                return b""
        return None

    def broken(self, reason: str) -> Broken:
        """Make the error that this connection shows."""
        return Broken(reason, self)

    def why_no_time(self, end: End) -> str:
        """Say what came in place of a time."""
        received = bytes(self.received)
        if received:
            try:
                read_answer(received.partition(b"\n")[0] + b"\n" if b"\n" in received else received)
            except AskError as exc:
                if b"\n" in received or received[:5] == b"HTTP/" or received[:1] in b"\x15\x16":
                    return str(exc)
            return f"only a part of an answer came, {quoted(received)}"
        return {
            End.CLOSED: "the server closed the connection without an answer",
            End.RESET: "the server reset the connection without an answer",
        }.get(end, "no answer came")

    async def aclose(self) -> None:
        """Close at once.

        If the server has closed first, its port would be in TIME_WAIT for a minute, and a server without
        SO_REUSEADDR could not start again. A reset spares it that, and reaches no program.
        """
        if self.tcp.socket.fileno() < 0:
            return
        with suppress(OSError):
            if self.end is End.CLOSED or self._has_ended():
                self._reset_on_close()
        await trio.aclose_forcefully(self._stream)

    def _has_ended(self) -> bool:
        """Whether the end of the stream has arrived, and nothing before it is unread."""
        descriptor = self.tcp.socket.fileno()
        with socket.socket(fileno=os.dup(descriptor)) as sock, suppress(BlockingIOError):
            return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        return False

    def _reset_on_close(self) -> None:
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def quoted(data: bytes) -> str:
    """Render bytes in quotes, shortened."""
    return f"'{printable(data)}{'…' if len(data) > SHOWN_CHARACTERS else ''}'"
