"""A judge's connections to a server: what they send, what comes back, and how long they wait.

How long a judge waits depends on the server. A server is silent if nothing came for a fifth of the patience,
and for twenty times its slowest answer so far. If the server serves clients side by side, a control client
must also have got its answer meanwhile: a machine that stood still is no silent server.
"""

import os
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import tzinfo
from enum import Enum, auto
from typing import TypeVar

import trio

from triojam.client.session import AskError, Session, Target, connect, over_tls, read_answer
from triojam.core.protocol import REQUEST, SHOWN_CHARACTERS, printable

Case = TypeVar("Case")

# A time in an answer, also if the form of the answer is not exactly right.
TIME_OF_DAY = re.compile(rb"(?i)\bJAM\W{0,3}(\d{1,2})\D(\d{1,2})\D(\d\d|\d(?=\D))")

SLOWER = 20  # a server is given this many times its slowest answer
LAST_LOOK = 0.25
AT_ONCE = 20
MOST_BYTES = 1 << 20
MOST_SHOWN = 4
SMALL_BUFFER, SMALL_SEGMENT = 4096, 536


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


class Client:
    """One connection. received: all bytes that came so far. end: how the server ended it, if it did."""

    def __init__(self, subject: "Subject", stream: trio.abc.Stream) -> None:
        self._subject = subject
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
        more = " …" if len(self._sent) > MOST_SHOWN else ""
        return " ".join(map(quoted, self._sent[:MOST_SHOWN])) + more or "nothing"

    @property
    def came(self) -> str:
        """What came back, and how the connection ended."""
        ends = {End.CLOSED: "closed", End.RESET: "reset"}
        parts = [quoted(bytes(self.received))] if self.received else []
        if self.end in ends:
            parts.append(ends[self.end])
        return ", ".join(parts) or "nothing"

    async def send(self, data: bytes, *, patience: float | None = None) -> bool:
        """Send, and return whether the server still took it. patience: None = the subject's."""
        self._sent.append(data)
        with trio.move_on_after(patience or self._subject.patience), suppress(trio.BrokenResourceError):
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

    async def receive(self, enough: Callable[[bytes], object], *, patient: bool = False) -> End:
        """Receive until all that came is `enough`, the connection ends, or the server is silent.

        patient: wait for the whole patience.
        """
        subject = self._subject
        waits = [subject.patience] if patient else [subject.silence, LAST_LOOK]
        ends = trio.current_time() + 2 * subject.patience  # whatever comes
        while not enough(bytes(self.received)) and len(self.received) < MOST_BYTES:
            if (data := await self._receive_some(waits[0])) is None:
                if len(waits) == 1 or trio.current_time() > ends:
                    return End.SILENT
                if subject.concurrent:
                    await subject.why_not_answering()
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

    async def _receive_some(self, seconds: float) -> bytes | bytearray | None:
        """Return bytes, none of them at the end, and None if nothing came."""
        with trio.move_on_after(seconds):
            try:
                return await self._stream.receive_some()
            except trio.BrokenResourceError as exc:
                # Over TLS, an end without close_notify.
                at_end = isinstance(exc.__cause__, ssl.SSLEOFError)
                self.end = End.CLOSED if at_end else End.RESET
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


class Subject:
    """The server that is judged, and how it is reached.

    patience: how long to wait for a connection, and at most for an answer, in seconds. zone: the time zone of
    the answers; None = this machine's. concurrent: whether it is known to serve clients side by side.
    socket_address: known after the first connection. slowest: the slowest answer so far, in seconds.
    """

    def __init__(
        self,
        target: Target,
        *,
        patience: float = 5.0,
        tls: ssl.SSLContext | None = None,
        zone: tzinfo | None = None,
    ) -> None:
        self.target = target
        self.patience = patience
        self.tls = tls
        self.zone = zone
        self.concurrent = False
        self.socket_address: tuple[str | int, ...] = ()
        self.slowest = 0.0
        self.clients: list[Client] = []

    @property
    def reaction(self) -> float:
        """How long others may wait while a hostile client is there: a second, or a fifth of the patience."""
        return self.patience / 5

    @property
    def silence(self) -> float:
        """How long to wait before a server counts as silent."""
        return min(max(self.reaction, SLOWER * self.slowest), self.patience)

    async def open(self) -> Client:
        """Open a connection. Raises Broken if the server does not accept it."""
        session = await self._connect(self.tls)
        return self._keep(session.stream)

    async def open_tcp(self) -> trio.abc.Stream:
        """Open a connection without TLS, for the caller to close. Raises Broken."""
        return (await self._connect(None)).stream

    async def open_with_small_buffers(self) -> Client:
        """Open a connection whose answers soon fill all buffers, if they are not read. Raises Broken.

        The server's kernel sizes its send buffer by the size of the segments.
        """
        family = socket.AF_INET6 if len(self.socket_address) > 2 else socket.AF_INET
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT)
        try:
            with trio.fail_after(self.patience):
                await sock.connect(self.socket_address)
        except (OSError, trio.TooSlowError) as exc:
            sock.close()
            raise Broken(f"no connection: {str(exc).lower()}") from exc
        return await self.adopt(trio.SocketStream(sock))

    async def adopt(self, tcp: trio.SocketStream) -> Client:
        """Make a client of a TCP connection, with TLS if the server has it. Raises Broken."""
        try:
            return self._keep(await over_tls(tcp, self.tls, self.target.host))
        except AskError as exc:
            raise Broken(str(exc)) from exc

    async def _connect(self, tls: ssl.SSLContext | None) -> Session:
        target = self.target
        if self.socket_address:
            host, port, *_ = self.socket_address
            target = Target(str(host), int(port))
        try:
            session = await connect(target, patience=self.patience, tls=tls, name=self.target.host)
        except AskError as exc:
            raise Broken(f"no connection: {exc}") from exc
        self.socket_address = session.socket_address
        return session

    def _keep(self, stream: trio.abc.Stream) -> Client:
        client = Client(self, stream)
        self.clients.append(client)
        return client

    async def ask(self, data: bytes = REQUEST) -> Client:
        """Open a connection and send. Raises Broken."""
        client = await self.open()
        await client.send(data)
        return client

    async def why_not_answering(self, seconds: float | None = None) -> str | None:
        """Ask with a new connection; return what went wrong, and None for an answer within `seconds`."""
        began = trio.current_time()
        client: Client | None = None
        try:
            with trio.fail_after(seconds or self.patience):
                client = await self.ask()
                end = await client.receive_times(patient=True)
                if end is End.ENOUGH:
                    self.slowest = max(self.slowest, trio.current_time() - began)
                    return None
                return client.why_no_time(end)
        except Broken as exc:
            return str(exc)
        except trio.TooSlowError:
            return f"no answer within {seconds or self.patience:g} s"
        finally:
            if client is not None:
                self.clients.remove(client)
                await client.aclose()

    async def each(self, cases: Sequence[Case], visit: Callable[[Case], Awaitable[None]]) -> None:
        """Visit the server once for each case: side by side if it can do that. Raises the first Broken."""
        found: dict[int, Broken] = {}
        limit = trio.CapacityLimiter(AT_ONCE if self.concurrent else 1)

        async def visit_one(place: int, case: Case) -> None:
            async with limit:
                try:
                    await visit(case)
                except Broken as exc:
                    found[place] = exc
                if not self.concurrent:
                    await self._close_all()

        async with trio.open_nursery() as nursery:
            for place, case in enumerate(cases):
                nursery.start_soon(visit_one, place, case)
        if found:
            raise found[min(found)]

    async def close(self) -> None:
        """Close all connections, and forget them."""
        await self._close_all()
        self.clients.clear()

    async def _close_all(self) -> None:
        for client in self.clients:
            await client.aclose()


def quoted(data: bytes) -> str:
    """Render bytes in quotes, shortened."""
    return f"'{printable(data)}{'…' if len(data) > SHOWN_CHARACTERS else ''}'"
