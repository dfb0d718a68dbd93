"""The limits of the web listener: connections, time, and its effect on the time service."""

import errno
import socket
from http import HTTPStatus
from pathlib import Path

import pytest
import trio

import triojam
from tests.conftest import Start
from tests.helpers.scrape import fetch
from tests.helpers.servers import JAM, PATIENCE, receive_all, settings_for_test, until
from triojam.web.http_server import GRACEFUL_SECONDS, MOST_CONNECTIONS, _Listener


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


async def test_scrapers_have_a_limit(start_socket: Start) -> None:
    """The web listener closes connections over its own limit; the time service is not affected."""
    running = await start_socket(metrics_port=0)
    assert running.server is not None
    address = running.server.metrics_addresses[0]
    inside = [await trio.open_tcp_stream(*address) for _ in range(MOST_CONNECTIONS)]
    for client in inside:
        await client.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await client.receive_some()).startswith(b"HTTP/1.1 200")
    async with await trio.open_tcp_stream(*address) as one_more:
        assert await receive_all(one_more) == b""
    assert await running.ask(b"TIME\r\n") == JAM
    for client in inside:
        await client.aclose()

    with trio.fail_after(PATIENCE):
        while not await is_served(address):  # noqa: ASYNC110  # no event tells when a connection has ended
            await trio.sleep(0.01)


async def is_served(address: tuple[str, int]) -> bool:
    """Whether the web listener answers, instead of closing the connection."""
    try:
        return (await fetch(address, "/healthz")).status == HTTPStatus.OK
    except OSError:
        return False


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


async def test_a_failed_accept_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    """After EMFILE the web listener pauses and continues, without a log line."""
    (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = _Listener(plain.socket, set())
    failures = [errno.EMFILE, errno.ECONNABORTED]

    class FailingOnce(trio.socket.SocketType):
        async def accept(self) -> tuple[trio.socket.SocketType, object]:
            if failures:
                raise OSError(failures.pop(), "")
            await trio.sleep_forever()
            raise AssertionError

        def fileno(self) -> int:
            return 3

    listener._socket = FailingOnce()
    with trio.move_on_after(5):
        await listener.accept()
    assert not failures
    await plain.aclose()
