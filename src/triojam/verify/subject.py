"""The server that is judged: opens connections to it, and asks whether it still answers."""

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from datetime import tzinfo
from typing import TypeVar

import trio

from triojam.client.session import AskError, Session, Target, connect, over_tls
from triojam.core.protocol import REQUEST
from triojam.verify.client import Broken, Client, End, Pace

Case = TypeVar("Case")

AT_ONCE = 20
SMALL_BUFFER, SMALL_SEGMENT = 4096, 536


class Subject:
    """The server that is judged, and how it is reached.

    patience: see `Pace`. zone: the time zone of the answers; None = this machine's. clients: the connections
    of the rule that is tried. socket_address: known after the first connection.
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
        self.pace = Pace(patience)
        self.tls = tls
        self.zone = zone
        self.socket_address: tuple[str | int, ...] = ()
        self.clients: list[Client] = []

    @property
    def concurrent(self) -> bool:
        """Whether the server is known to serve clients side by side."""
        return self.pace.control is not None

    def is_concurrent(self) -> None:
        """Note that the server serves clients side by side."""
        self.pace.control = self.why_not_answering

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
            with trio.fail_after(self.pace.patience):
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
            session = await connect(target, patience=self.pace.patience, tls=tls, name=self.target.host)
        except AskError as exc:
            raise Broken(f"no connection: {exc}") from exc
        self.socket_address = session.socket_address
        return session

    def _keep(self, stream: trio.abc.Stream) -> Client:
        client = Client(self.pace, stream)
        self.clients.append(client)
        return client

    async def ask(self, data: bytes = REQUEST) -> Client:
        """Open a connection and send. Raises Broken."""
        client = await self.open()
        await client.send(data)
        return client

    async def why_not_answering(self, seconds: float | None = None) -> str | None:
        """Ask with a new connection; return what went wrong, and None for an answer within `seconds`."""
        client: Client | None = None
        wait = seconds or self.pace.patience
        try:
            with trio.move_on_after(wait):
                client = await self.open()
                await client.send(REQUEST)
                end = await client.receive_times(patient=True)
                if end is not End.SILENT or client.received:
                    return None if end is End.ENOUGH else client.why_no_time(end)
        except Broken as exc:
            return str(exc)
        finally:
            if client is not None:
                self.clients.remove(client)
                await client.aclose()
        return f"no answer within {wait:g} s"

    async def each(self, cases: Sequence[Case], visit: Callable[[Case], Awaitable[None]]) -> None:
        """Visit the server for each case, side by side if it can do that. Raises the first Broken."""
        if not self.concurrent:
            for case in cases:
                await visit(case)
                await self._close_all()
            return
        found: list[Broken] = []
        limit = trio.CapacityLimiter(AT_ONCE)

        async def visit_one(case: Case) -> None:
            async with limit:
                try:
                    await visit(case)
                except Broken as exc:
                    found.append(exc)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for case in cases:
                nursery.start_soon(visit_one, case)
        if found:
            raise found[0]

    async def close(self) -> None:
        """Close all connections, and forget them."""
        await self._close_all()
        self.clients.clear()

    async def _close_all(self) -> None:
        for client in self.clients:
            await client.aclose()
