"""The web listener without the time service: its server, guard and routes, over TCP or TLS."""

import base64
import socket
import ssl
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC
from functools import cache
from typing import NamedTuple

import h11
import trio

from tests.helpers.servers import (
    PATIENCE,
    ClientEnd,
    Events,
    TlsClient,
    certificate,
    receive_exactly,
    trusting,
    until,
)
from triojam.core.counters import Counters
from triojam.core.reasons import WebRejection
from triojam.web.auth import BasicAuth
from triojam.web.http_server import HttpServer
from triojam.web.metrics import CountersCollector, make_registry
from triojam.web.page.live_page import LivePage
from triojam.web.passwords import Passwords
from triojam.web.routes import Routes, own_names

KEY = bytes(32)
# Making a context reads all authorities of the system.
_trusting = cache(trusting)


class Answer(NamedTuple):
    """One HTTP response. The names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def get(path: str = "/healthz", *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Return a request. lines: more header lines."""
    head = [f"{method} {path} HTTP/{version}", "Host: localhost", *lines]
    return "".join(f"{line}\r\n" for line in [*head, ""]).encode("latin-1")


def authorization(user: str, password: str) -> str:
    """Return the header line of a password."""
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def parse(data: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """Parse all answers of a connection that has ended. Raises h11.RemoteProtocolError for other bytes.

    methods: of the requests, as far as they are not GET.
    """
    answers, left = [], iter(methods)
    while data:
        answer, data = parse_first(data, next(left, "GET"))
        assert answer is not None, "the last answer is cut"
        answers.append(answer)
    return answers


def parse_first(data: bytes, method: str) -> tuple[Answer | None, bytes]:
    """Parse the first answer of a connection that has ended; return it, or None if it is cut, and the rest.

    Raises h11.RemoteProtocolError for bytes that are not HTTP/1.1.
    """
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "localhost")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    if head is h11.NEED_DATA:
        return None, b""
    assert isinstance(head, h11.Response), head
    assert head.http_version == b"1.1"
    names = Counter(name for name, _ in head.headers)
    assert max(names.values()) == 1, names
    headers = {name.decode(): value.decode() for name, value in head.headers}
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    if event is h11.NEED_DATA:
        if headers.keys() & {"content-length", "transfer-encoding"}:
            return None, b""
        return Answer(head.status_code, headers, body), b""  # the end of the connection is its end
    return Answer(head.status_code, headers, body), client.trailing_data[0]


class Web:
    """A web listener under test.

    tls: whether it speaks TLS. hashes: of its users. names: the setting metrics_names.
    stop: is set to stop it. stopped: is set at the end. failures: unexpected exceptions so far.
    """

    def __init__(self, *, tls: bool = False, hashes: Mapping[bytes, bytes] = {}, names: str = "") -> None:
        self.tls = tls
        self.counters = Counters()
        self.events = Events()
        self.passwords = Passwords(hashes, key=KEY)
        self.stop = trio.Event()
        self.stopped = trio.Event()
        self.failures = 0
        self._clients: list[trio.SocketStream] = []
        self.address = ("", 0)
        log = self.events.make_logger("info")
        collector = CountersCollector(
            self.counters,
            clock=lambda: 0.0,
            kernel_clock=lambda: None,
            log_messages_dropped=int,
            client_table_evictions=int,
            certificate_ends=dict,
            version="0",
        )
        page = LivePage(
            collector.read,
            not_ready=lambda: None,
            zone=lambda: UTC,
            listeners={"time": []},
            version="0",
        )
        self.routes = Routes(
            registry=make_registry(collector),
            not_ready=lambda: None,
            page=page,
            names=own_names(names),
        )
        guard = BasicAuth(
            self.routes.answer, passwords=self.passwords, counters=self.counters, log=lambda: log
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate().configure_cert(context)
        self.server = HttpServer(
            guard.answer,
            reject=self._reject,
            failed=self._failed,
            tls=lambda: context if tls else None,
        )

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve on a free port of every IPv4 loopback address."""
        listening = socket.create_server(("0.0.0.0", 0), backlog=128)
        self.address = ("127.0.0.1", listening.getsockname()[1])
        await self.server.serve([listening], stop=self.stop, task_status=task_status)
        self.stopped.set()

    async def connect(self, source: str = "127.0.0.1") -> ClientEnd:
        """Open a connection from this address."""
        tcp = await self.connect_tcp(source)
        if not self.tls:
            return tcp
        client = TlsClient(tcp, _trusting())
        await client.tls.do_handshake()
        return client

    async def connect_tcp(self, source: str = "127.0.0.1") -> trio.SocketStream:
        """Open a connection from this address, without a handshake."""
        client = await trio.open_tcp_stream(*self.address, local_address=source)
        self._clients.append(client)
        return client

    async def close_clients(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await trio.aclose_forcefully(client)
        self._clients.clear()

    async def exchange(self, *pieces: bytes, end: bool = False, methods: Iterable[str] = ()) -> list[Answer]:
        """Send pieces, and return all answers until the server closes.

        end: whether to end the sending side. methods: of the requests, as far as they are not GET.
        """
        client = await self.connect()
        for piece in pieces:
            await client.send_all(piece)
        if end:
            await client.send_eof()
        received = bytearray()
        # Trio's TLS sends no close_notify if the client's data or the end of its TCP stream is unread.
        with trio.fail_after(PATIENCE), suppress(*[trio.BrokenResourceError] if self.tls else []):
            async for data in client:
                received += data
        await trio.aclose_forcefully(client)
        return parse(bytes(received), methods)

    async def ask(self, client: ClientEnd, request: bytes) -> Answer:
        """Send a request on an open connection, and return the answer, which has Content-Length."""
        await client.send_all(request)
        data = bytearray()
        while not data.endswith(b"\r\n\r\n"):
            data += await receive_exactly(client, 1)
        size = int(data.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        (answer,) = parse(bytes(data) + await receive_exactly(client, size))
        return answer

    async def scrapes(self, *lines: str) -> None:
        """Check that a scrape is answered."""
        (answer,) = await self.exchange(get("/metrics", "Connection: close", *lines))
        assert answer.status == 200, answer
        assert b"triojam_requests_total 0.0\n" in answer.body

    @property
    def places(self) -> int:
        """The number of places that are taken."""
        return len(self.server._places)

    async def at_rest(self, *lines: str) -> None:
        """Close all connections; check that all places are free, a scrape is answered, and nothing failed.

        lines: header lines of the scrape.
        """
        await self.close_clients()
        await until(lambda: not self.places)
        await self.scrapes(*lines)
        await until(lambda: not self.places)
        assert not any(source.connections for source in self.server._sources._sources.values())
        assert self.failures == 0
        assert len(self.events) <= 1, self.events

    def _reject(self, reason: WebRejection) -> None:
        self.counters.web_rejected[reason] += 1

    def _failed(self) -> None:
        self.failures += 1
