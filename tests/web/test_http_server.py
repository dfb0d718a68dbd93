"""The limits of the web listener: connections, time, and its effect on the time service."""

import errno
import socket
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from select import select
from typing import cast

import pytest
import trio

import triojam
from tests.conftest import Start
from tests.helpers.scrape import fetch
from tests.helpers.servers import (
    JAM,
    PATIENCE,
    FailingListener,
    receive_all,
    settings_for_test,
    until,
)
from tests.helpers.web import Web, get
from tests.web.conftest import StartWeb
from tests.web.test_http_connection import H2_PREFACE
from triojam.core.reasons import WebRejection
from triojam.web import http_server
from triojam.web.http_connection import Request, Response
from triojam.web.http_server import GRACEFUL_SECONDS, MOST_A_SOURCE, MOST_CONNECTIONS


async def stalled_scraper(address: tuple[str, int]) -> trio.SocketStream:
    """Open a connection that requests more pages than the kernel can buffer, and reads none."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await sock.connect(address)
    client = trio.SocketStream(sock)
    with trio.move_on_after(0.3):
        await client.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20_000)
    return client


@pytest.mark.parametrize("how", ["drained", "cancelled"])
async def test_a_stalled_scraper_does_not_delay_the_end(how: str) -> None:
    """A scraper that does not read delays neither a drain nor a cancellation."""
    async with trio.open_nursery() as nursery:
        server: triojam.Server = await nursery.start(triojam.serve, settings_for_test(metrics_port=0))
        async with await stalled_scraper(server.metrics_addresses[0]):
            with trio.fail_after(GRACEFUL_SECONDS + 5):
                if how == "drained":
                    server.drain()
                else:
                    nursery.cancel_scope.cancel()
                await until(lambda: not nursery.child_tasks)


async def test_the_longest_silence_gives_way(start_web: StartWeb) -> None:
    """Silent connections take every place, but a scrape is answered: the longest silent one is closed."""
    web = await start_web()
    silent = [await web.connect_tcp(source(number)) for number in range(MOST_CONNECTIONS)]
    await until(lambda: web.places == MOST_CONNECTIONS)
    await web.scrapes()
    assert await receive_all(silent[0]) == b""
    assert web.counters.web_rejected[WebRejection.BUSY] == 1
    for client in silent[1:]:
        assert not await readable(client)


async def test_a_source_takes_its_own_places_only(start_web: StartWeb) -> None:
    """A source beyond its share loses its own longest silent connection, and no other source does."""
    web = await start_web()
    other = await web.connect_tcp("127.0.0.9")
    await until(lambda: web.places == 1)
    silent = [await web.connect_tcp() for _ in range(MOST_A_SOURCE)]
    await until(lambda: web.places == 1 + MOST_A_SOURCE)
    await web.scrapes()
    assert await receive_all(silent[0]) == b""
    assert not await readable(other)
    assert web.counters.web_rejected[WebRejection.PER_SOURCE] == 1


async def test_half_a_request_gives_way(start_web: StartWeb) -> None:
    """Clients in the middle of a request do not lock out a scraper of the same source."""
    web = await start_web()
    slow = []
    for _ in range(MOST_A_SOURCE):
        slow.append(await web.connect())
        await slow[-1].send_all(b"GET /metrics HTTP/1.1\r\nX: ")
    await until(lambda: web.places == MOST_A_SOURCE)
    await web.scrapes()


async def test_connections_that_have_had_their_last_answer_give_way(start_web: StartWeb) -> None:
    """A refused request is answered, and a client that then stays silent has no place that another needs."""
    web = await start_web()
    clients = []
    for _ in range(MOST_A_SOURCE):
        clients.append(await web.connect())
        await clients[-1].send_all(b"x\r\n\r\n")
        assert (await clients[-1].receive_some()).startswith(b"HTTP/1.1 400")
    await web.scrapes()


@pytest.mark.parametrize("number", [MOST_CONNECTIONS, 100])
async def test_silent_connections_do_not_lock_out_scrapes(number: int, start_web: StartWeb) -> None:
    """While silent connections come again and again, every scrape is answered."""
    web = await start_web()

    async def come_again() -> None:
        while True:
            async with await web.connect_tcp() as client:
                assert await receive_all(client) == b""
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(come_again)
        await until(lambda: web.places == MOST_A_SOURCE)
        for _ in range(10):
            await web.scrapes()
        nursery.cancel_scope.cancel()


async def test_busy_places_do_not_give_way(start_web: StartWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that wait for the server keep their places; the host of the last scrape has one more."""
    web = await start_web()
    async with await web.connect("127.0.1.4") as scraper:
        assert (await web.ask(scraper, get("/metrics"))).status == 200
    await until(lambda: not web.places)
    answer, may_answer = web.server._answer, trio.Event()

    async def answer_late(request: Request) -> Response:
        if request.path == "/status":
            await may_answer.wait()
        return await answer(request)

    monkeypatch.setattr(web.server, "_answer", answer_late)
    waiting = []
    for number in range(MOST_CONNECTIONS):
        waiting.append(await web.connect(f"127.0.1.{number // 8 + 1}"))
        await waiting[-1].send_all(get("/status"))
        await until(lambda: sum(place.waits_since is None for place in web.server._places) == len(waiting))
    with suppress(trio.BrokenResourceError):
        assert await web.exchange(get()) == []
    assert web.counters.web_rejected[WebRejection.BUSY] == 1
    async with await web.connect("127.0.1.4") as spare:
        assert (await web.ask(spare, get("/metrics"))).status == 200
    may_answer.set()


async def test_a_closed_connection_frees_its_place(start_socket: Start) -> None:
    """More connections than places, one after the other, are all answered; so is the time port."""
    running = await start_socket(metrics_port=0)
    assert running.server is not None
    address = running.server.metrics_addresses[0]
    for _ in range(MOST_CONNECTIONS * 2):
        assert (await fetch(address, "/healthz")).status == HTTPStatus.OK
    assert await running.ask(b"TIME\r\n") == JAM


async def test_a_cancelled_start_closes_its_sockets() -> None:
    """Serving can be cancelled at any checkpoint of its start; no socket stays open."""

    def open_sockets() -> int:
        links = list(Path("/proc/self/fd").iterdir())
        return sum(str(link.readlink()).startswith("socket:") for link in links if link.is_symlink())

    before = open_sockets()
    for checkpoints in range(40):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(triojam.serve, settings_for_test(metrics_port=0))
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
    assert open_sockets() == before


async def test_a_failed_accept_is_tried_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """After EMFILE the web listener pauses, and then accepts again."""
    web = Web()
    sock = socket.create_server(("127.0.0.1", 0))
    web.address = sock.getsockname()
    failing = FailingListener(sock, [errno.EMFILE, errno.ECONNABORTED, None])
    with sock:
        sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
        client = await trio.open_tcp_stream(*web.address)
        async with client, trio.open_nursery() as connections:
            listening = cast(socket.socket, failing)
            assert web.server._accept_some(listening, connections)
            assert web.server._accept_some(listening, connections)
            assert not web.server._accept_some(listening, connections)
            await client.send_all(get("/healthz", "Connection: close"))
            assert (await receive_all(client)).startswith(b"HTTP/1.1 200 ")


async def test_a_page_that_fails_ends_alone(start_web: StartWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of an answer ends in status 500, and is reported."""
    web = await start_web()

    def fail(_since: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(web.routes._page, "content", fail)
    (answer,) = await web.exchange(get("/status", "Connection: close"))
    assert answer.status == 500
    await until(lambda: not web.places)
    assert web.failures == 1
    web.failures = 0


PLAIN = [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", H2_PREFACE, b"\xff" * 5000]


@pytest.mark.parametrize("sent", PLAIN, ids=len)
async def test_a_handshake_has_a_deadline(
    sent: bytes, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake that does not end, or is none, ends the connection without a traceback."""
    web = Web(tls=True)
    await nursery.start(web.serve)
    with monkeypatch.context() as patch:
        patch.setattr(http_server, "FIRST_SECONDS", 0.1)
        for end in (False, True):
            async with await web.connect_tcp() as client:
                await client.send_all(sent)
                if end:
                    await client.send_eof()
                with suppress(trio.BrokenResourceError):
                    assert not (await receive_all(client)).startswith(b"HTTP")
    await web.at_rest()
    web.stop.set()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", get("/status"), get("/metrics") * 500, get()], ids=len)
async def test_a_drain_ends_every_client(sent: bytes, start_web: StartWeb) -> None:
    """Silent, slow, unread and idle clients do not delay the end of the web listener."""
    web = await start_web()
    clients = [await web.connect() for _ in range(3)]
    for client in clients:
        with trio.move_on_after(0.2):
            await client.send_all(sent)
    await until(lambda: web.places == len(clients))
    began = trio.current_time()
    web.stop.set()
    with trio.fail_after(PATIENCE):
        await web.stopped.wait()
    assert trio.current_time() - began < GRACEFUL_SECONDS + PATIENCE / 2


def source(number: int) -> str:
    """Return one of four loopback addresses, each for no more connections than a source may have."""
    return f"127.0.2.{number % 4 + 1}"


async def readable(client: trio.SocketStream) -> bool:
    """Whether something has come from the server, or its end."""
    await trio.lowlevel.checkpoint()
    return bool(select([client.socket], [], [], 0)[0])
