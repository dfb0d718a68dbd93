"""Servers for tests over every transport, and the check that their counters balance."""

import logging
import os
import socket
import ssl
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import structlog
import trio
import trio.testing
import trustme
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from tests.helpers.memory import MemoryStream
from triojam import Server, Settings, serve
from triojam.core.admission import Admission
from triojam.core.counters import Counters
from triojam.serving.client import Client
from triojam.serving.clock import Clock
from triojam.serving.deadlines import Timeouts
from triojam.serving.fast_lane import FastLane
from triojam.serving.handler import Handler
from triojam.serving.service import Service, make_policy, make_rules, make_timeouts
from triojam.settings.zones import load_zone

# 12:34:56 in UTC, and not on the edge of a second.
NOW = 1_700_051_696.25
JAM = b"JAM 12:34:56\r\n"

# In seconds. A test that waits longer for an event fails.
PATIENCE = 20.0

ClientEnd = trio.abc.HalfCloseableStream


class Events(list[EventDict]):
    """The log of a server, as events of structlog."""

    def make_logger(self, level: str) -> FilteringBoundLogger:
        """Make a logger that appends to this list; a `triojam.logs.LoggerFactory`."""

        def keep(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
            self.append({**event, "level": method})
            raise structlog.DropEvent

        logger = structlog.wrap_logger(
            None,
            processors=[keep],
            wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        )
        return cast(FilteringBoundLogger, logger.bind())

    def named(self, event: str) -> list[EventDict]:
        """Return the events of this name."""
        return [each for each in self if each["event"] == event]


@dataclass
class Running:
    """A server under test.

    open: opens a connection, and returns the end of the client. drain: starts to stop the server.
    reload: changes some settings, as SIGHUP does. finished: set when a drained server has ended.
    tls: whether clients must use TLS. internal_errors: the number that a test has caused.
    """

    counters: Counters
    events: Events
    open: Callable[[], Awaitable[ClientEnd]]
    drain: Callable[[], None]
    reload: Callable[..., None]
    handler: Handler
    finished: trio.Event
    server: Server | None = None
    tls: bool = False
    internal_errors: int = 0
    _clients: list[ClientEnd] = field(default_factory=list)

    async def connect(self) -> ClientEnd:
        """Open a connection. It is closed at the end of the test at the latest."""
        client = await self.open()
        self._clients.append(client)
        return client

    @property
    def lane(self) -> FastLane | None:
        """The server's fast lane, if it has one."""
        return self.server._lane if self.server is not None else None

    def midline(self) -> bool:
        """Whether the server knows of a client within a line."""
        in_lane = self.lane is not None and bool(self.lane._partials)
        return in_lane or any(client.protocol.midline for client in self.handler._clients)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Replace the timeouts, as a reload does."""
        self.handler._service.timeouts = timeouts
        self.handler.settings_changed()

    async def close_clients(self) -> None:
        """Close all connections from `connect`."""
        for client in self._clients:
            await trio.aclose_forcefully(client)

    async def refuses(self, text: bytes) -> bool:
        """Whether a new connection is closed with `text`; over TLS without it, before the handshake."""
        try:
            return await receive_all(await self.connect()) == text and not self.tls
        except trio.BrokenResourceError:
            return self.tls or not text

    async def ask(self, data: bytes, *, end: bool = True) -> bytes:
        """Send `data` on a new connection, end the sending side, and return the whole reply."""
        client = await self.connect()
        await client.send_all(data)
        if end:
            await client.send_eof()
        return await receive_all(client)


def settings_for_test(**changes: Any) -> Settings:
    """Make settings: a free loopback port, UTC, no web listener, long deadlines."""
    defaults: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "metrics_port": None,
        "timezone": "UTC",
        "fast_lane": False,
        "log_level": "debug",
        "grace": PATIENCE,
    }
    return Settings(**defaults | changes)


async def start_tcp(
    nursery: trio.Nursery, *, now: Callable[[], float] = lambda: NOW, **changes: Any
) -> Running:
    """Start a whole server on a loopback socket; clients are real TCP connections."""
    events = Events()
    finished = trio.Event()

    async def run(*, task_status: trio.TaskStatus[Server]) -> None:
        await serve(
            settings_for_test(**changes), make_logger=events.make_logger, now=now, task_status=task_status
        )
        finished.set()

    server: Server = await nursery.start(run)
    host, port = server.addresses[0]
    return Running(
        counters=server.counters,
        events=events,
        open=partial(trio.open_tcp_stream, host, port),
        drain=server.drain,
        reload=lambda **changes: server.reload(replace(server._settings, **changes)),
        handler=server._handler,
        finished=finished,
        server=server,
    )


async def start_lane(nursery: trio.Nursery, **changes: Any) -> Running:
    """Start a whole server whose fast lane is on."""
    return await start_tcp(nursery, fast_lane=True, **changes)


@cache
def authority() -> trustme.CA:
    """Return the authority of all test certificates. It is cached, because keys take time to make."""
    return trustme.CA()


@cache
def certificate() -> trustme.LeafCert:
    """Return the certificate of servers under test."""
    return authority().issue_cert("localhost", "127.0.0.1")


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that exists as long as this process."""
    return tempfile.TemporaryDirectory(prefix="triojam-tests-")


@cache
def certificate_file() -> str:
    """Return the path of a file with that certificate and its key."""
    file = Path(_folder().name) / "server.pem"
    file.write_bytes(certificate().private_key_and_cert_chain_pem.bytes())
    return str(file)


def trusting() -> ssl.SSLContext:
    """Make the context of a client that trusts the authority."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


class TlsClient(trio.abc.HalfCloseableStream):
    """The client of a TLS connection. It can end its sending side, and requires close_notify from the server.

    tcp: the stream below TLS.
    """

    def __init__(self, tcp: trio.SocketStream, context: ssl.SSLContext) -> None:
        self.tcp = tcp
        self.tls = trio.SSLStream(tcp, context, server_hostname="localhost")
        self._ended = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        await self.tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait."""
        await self.tls.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive."""
        return await self.tls.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """End the sending side of TCP without close_notify, as most clients do."""
        self._ended = True
        await self.tcp.send_eof()

    async def aclose(self) -> None:
        """Close, with close_notify unless the sending side has ended."""
        await (self.tcp if self._ended else self.tls).aclose()


def raw(client: ClientEnd) -> trio.SocketStream:
    """Return the TCP stream of a client."""
    tcp = client.tcp if isinstance(client, TlsClient) else client
    assert isinstance(tcp, trio.SocketStream)
    return tcp


async def open_tls(address: tuple[str, int], context: ssl.SSLContext) -> TlsClient:
    """Open a connection and shake hands. Raises trio.BrokenResourceError if it is closed before."""
    client = TlsClient(await trio.open_tcp_stream(*address), context)
    try:
        await client.tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(client.tcp)
        raise
    return client


async def start_tls(nursery: trio.Nursery, **changes: Any) -> Running:
    """Start a whole server; clients speak TLS."""
    secured: dict[str, Any] = {"tls_port": 0, "tls_certificate": certificate_file()}
    running = await start_tcp(nursery, **secured | changes)
    assert running.server is not None
    running.open = partial(open_tls, running.server.tls_addresses[0], trusting())
    running.tls = True
    return running


async def start_memory(
    nursery: trio.Nursery, *, now: Callable[[], float] = lambda: NOW, **changes: Any
) -> Running:
    """Start the shared handler alone, on streams in memory: no kernel, no listener."""
    settings = settings_for_test(**changes)
    events = Events()
    clock = Clock(zone=load_zone(settings.timezone), now=now)
    finished = trio.Event()
    service = make_service(settings, jam=clock.jam, log=events.make_logger(settings.log_level))
    handler = Handler(service)
    drain_asked = trio.Event()

    async def run(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        async with trio.open_nursery() as beside:
            beside.start_soon(handler.keep_time)
            async with trio.open_nursery() as clients:
                task_status.started(clients)
                await drain_asked.wait()
                ends = clients.cancel_scope.deadline = trio.current_time() + settings.grace
                handler.drain(ends)
            beside.cancel_scope.cancel()
        finished.set()

    def reload(**changes: Any) -> None:
        nonlocal settings
        settings = replace(settings, **changes)
        service.rules = make_rules(settings)
        service.timeouts = make_timeouts(settings)
        handler.settings_changed()
        clock.set_zone(load_zone(settings.timezone))

    clients: trio.Nursery = await nursery.start(run)

    async def open_pair() -> ClientEnd:
        stream = MemoryStream()
        service.counters.opened()
        clients.start_soon(handler.handle, Client(service, stream, since=trio.current_time()))
        return stream.client

    return Running(
        counters=service.counters,
        events=events,
        open=open_pair,
        drain=drain_asked.set,
        reload=reload,
        handler=handler,
        finished=finished,
    )


def make_service(
    settings: Settings | None = None,
    *,
    jam: Callable[[], bytes] = lambda: JAM,
    log: FilteringBoundLogger | None = None,
) -> Service:
    """Make the service that all connections of a server share."""
    settings = settings or settings_for_test()
    counters = Counters()
    counters.connections_limit = settings.max_connections
    return Service(
        rules=make_rules(settings),
        timeouts=make_timeouts(settings),
        counters=counters,
        admission=Admission(make_policy(settings)),
        jam=jam,
        log=log or Events().make_logger("info"),
    )


async def receive_all(client: trio.abc.ReceiveStream) -> bytes:
    """Receive until the server closes."""
    received = bytearray()
    with trio.fail_after(PATIENCE):
        async for data in client:
            received += data
    return bytes(received)


async def receive_exactly(client: trio.abc.ReceiveStream, size: int) -> bytes:
    """Receive `size` bytes; fewer only if the stream ends."""
    received = bytearray()
    with trio.fail_after(PATIENCE):
        while len(received) < size and (data := await client.receive_some(size - len(received))):
            received += data
    return bytes(received)


async def assert_answered(client: ClientEnd, sent: bytes = b"TIME\r\n", answer: bytes = JAM) -> None:
    """Send requests, and check that the answers come."""
    await client.send_all(sent)
    assert await receive_exactly(client, len(answer)) == answer


def reset_on_close(sock: socket.socket | trio.SocketStream) -> None:
    """Make the kernel send RST when this socket is closed (socket(7), SO_LINGER)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class FailingListener:
    """A listening socket whose `accept` fails with these errors in turn; None in their place is a success."""

    def __init__(self, sock: socket.socket, errors: Iterable[int | None]) -> None:
        self._sock = sock
        self._errors = iter(errors)

    def accept(self) -> tuple[socket.socket, object]:
        """Accept, or fail with the next error."""
        if (code := next(self._errors, None)) is not None:
            raise OSError(code, os.strerror(code))
        return self._sock.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


async def balanced(counters: Counters) -> None:
    """Wait until all connections have ended, then check that the counters balance."""
    await until(lambda: counters.connections_open == 0)
    assert counters.unaccounted == 0
    assert counters.request_duration.count == counters.responses
    admitted = counters.connections - sum(counters.connections_rejected.values())
    assert sum(counters.disconnects.values()) == admitted


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition in this process that sets no event."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # counters set no event
            await trio.sleep(0.001)
