"""The portable listener."""

import errno
import os
import socket
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.servers import make_service
from triojam.core.addresses import format_address
from triojam.core.reasons import AcceptError
from triojam.serving.listeners import ACCEPT_PAUSE, ACCEPTS_AT_ONCE, ClientListener


class FailingSocket:
    """A listening socket, of which accepting fails in a given order, and then succeeds."""

    def __init__(self, sock: socket.socket, errors: list[int]) -> None:
        self.sock = sock
        self.errors = errors

    def accept(self) -> tuple[socket.socket, object]:
        """Fail with the next error."""
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, os.strerror(code))
        return self.sock.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self.sock, name)


async def test_accept_errors_are_counted_and_survived(autojump_clock: MockClock) -> None:
    """Every failed accept is counted by errno; those that do not pass by themselves pause accepting."""
    service = make_service()
    errors = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE, errno.ENOBUFS, errno.EMFILE]
    sock = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(
        sock.getsockname()
    ):  # it waits in the queue, so that there is something to try
        stand_in: Any = FailingSocket(sock, errors)
        listener = ClientListener(sock, service)
        listener.socket = stand_in
        began = trio.current_time()
        (await listener.accept()).stream.close()
        sock.close()
    assert not errors
    assert service.counters.accept_errors == {
        AcceptError.EMFILE: 2,
        AcceptError.ENFILE: 1,
        AcceptError.ECONNABORTED: 1,
        AcceptError.OTHER: 1,
    }
    assert trio.current_time() - began == 4 * ACCEPT_PAUSE


async def test_an_error_does_not_hold_up_those_that_were_admitted(autojump_clock: MockClock) -> None:
    """Clients that were accepted before an error that lasts are served at once; only the next ones wait."""

    class Exhausted(FailingSocket):
        def accept(self) -> tuple[socket.socket, object]:
            """Accept two, then fail."""
            if len(accepted) < 2:
                accepted.append(self.sock.accept())
                return accepted[-1]
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    accepted: list[tuple[socket.socket, object]] = []
    sock = socket.create_server(("127.0.0.1", 0))
    clients = [socket.create_connection(sock.getsockname()) for _ in range(3)]
    listener = ClientListener(sock, make_service())
    stand_in: Any = Exhausted(sock, [])
    listener.socket = stand_in
    began = trio.current_time()
    for _ in range(2):
        (await listener.accept()).stream.close()
    assert trio.current_time() == began
    for each in (*clients, sock):
        each.close()


async def test_those_queued_together_are_accepted_in_one_turn() -> None:
    """A newcomer waits for one turn of the scheduler a batch, not for one a client that came before it."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=500)
    clients = [socket.create_connection(sock.getsockname()) for _ in range(200)]
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with ClientListener(sock, make_service()) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await trio.lowlevel.checkpoint()
        turns = 0
        for _ in clients:
            (await listener.accept()).stream.close()
        assert turns <= 2 * 200 / ACCEPTS_AT_ONCE + 2
        nursery.cancel_scope.cancel()
    for client in clients:
        client.close()


async def test_closing_ends_accept() -> None:
    """Closing the listener ends a waiting accept with ClosedResourceError."""
    listener = ClientListener(socket.create_server(("127.0.0.1", 0)), make_service())

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_drain_waits_for_the_queue() -> None:
    """It waits while a connection is queued, and ends once that is accepted."""
    service = make_service()
    service.counters.connections_limit = 1
    listener = ClientListener(socket.create_server(("127.0.0.1", 0)), service)
    async with listener, await trio.open_tcp_stream(*listener.socket.getsockname()):
        with trio.move_on_after(0.02) as waiting:
            await listener.drain()
        assert waiting.cancelled_caught
        async with await listener.accept():
            with trio.fail_after(5):
                await listener.drain()


def test_format_address() -> None:
    """An IPv6 host is bracketed, whatever else its address tuple has."""
    assert format_address(("127.0.0.1", 45000)) == "127.0.0.1:45000"
    assert format_address(("::1", 45000, 0, 0)) == "[::1]:45000"
