"""The portable listener."""

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.conftest import Start
from tests.helpers.program import descriptors
from tests.helpers.servers import FailingListener, assert_answered, make_service, raw
from triojam.core.addresses import format_address
from triojam.core.reasons import Disconnect
from triojam.serving import listeners
from triojam.serving.listeners import ACCEPT_PAUSE, ACCEPTS_AT_ONCE, ClientListener


async def test_accept_errors_are_counted_and_survived(autojump_clock: MockClock) -> None:
    """Every failed accept is counted by errno; after a persistent error, accepting pauses."""
    service = make_service()
    errors = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE, errno.ENOBUFS, errno.EMFILE]
    sock = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(sock.getsockname()):  # it waits in the queue
        stand_in: Any = FailingListener(sock, errors)
        listener = ClientListener(sock, service)
        listener.socket = stand_in
        began = trio.current_time()
        (await listener.accept()).stream.close()
        sock.close()
    assert service.counters.accept_errors == {"EMFILE": 2, "ENFILE": 1, "ECONNABORTED": 1, "other": 1}
    assert trio.current_time() - began == 4 * ACCEPT_PAUSE


async def test_a_vanished_peer_is_noticed(start_socket: Start) -> None:
    """The kernel probes each accepted connection after 60 s, and closes it after another minute."""
    server = await start_socket(idle_timeout=0.0)
    client = await server.connect()
    await assert_answered(client)
    ours = raw(client).socket.getsockname()
    found = []
    for descriptor in descriptors(os.getpid()):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as sock:
                if sock.getpeername() == ours:
                    found.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
                    found += [
                        sock.getsockopt(socket.IPPROTO_TCP, option)
                        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                    ]
    assert found == [1, 60, 15, 4]


async def test_an_accept_error_does_not_delay_admitted_clients(autojump_clock: MockClock) -> None:
    """Clients that were accepted before a persistent error are served at once."""
    sock = socket.create_server(("127.0.0.1", 0))
    clients = [socket.create_connection(sock.getsockname()) for _ in range(3)]
    listener = ClientListener(sock, make_service())
    stand_in: Any = FailingListener(sock, [None, None, errno.EMFILE])
    listener.socket = stand_in
    began = trio.current_time()
    for _ in range(2):
        (await listener.accept()).stream.close()
    assert trio.current_time() == began
    for each in (*clients, sock):
        each.close()


async def test_one_turn_accepts_many_queued_clients() -> None:
    """A new client waits for one turn per batch, not for one turn per client before it."""
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


async def test_closing_the_listener_ends_accept() -> None:
    """A waiting accept ends with ClosedResourceError when the listener is closed, and so does a later one."""
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


async def test_drain_waits_until_the_queue_is_empty() -> None:
    """A drain waits while a connection is queued, and ends after it is accepted."""
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


async def test_a_slow_drain_accepts_the_whole_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain goes on after LAST_ACCEPTS if the queue has not had enough turns yet."""
    monkeypatch.setattr(listeners, "ACCEPTS_AT_ONCE", 1)
    monkeypatch.setattr(listeners, "LAST_ACCEPTS", 0.0)
    service = make_service()
    listener = ClientListener(socket.create_server(("127.0.0.1", 0)), service)
    queued = [socket.create_connection(listener.socket.getsockname()) for _ in range(20)]

    async def accept() -> None:
        while True:
            (await listener.accept()).close(Disconnect.DRAIN)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await listener.drain()
        nursery.cancel_scope.cancel()
    await listener.aclose()
    for client in queued:
        client.close()
    assert service.counters.connections == len(queued)


def test_format_address_puts_ipv6_hosts_in_brackets() -> None:
    """An IPv6 host is in brackets, and the rest of its address tuple is left out."""
    assert format_address(("127.0.0.1", 45000)) == "127.0.0.1:45000"
    assert format_address(("::1", 45000, 0, 0)) == "[::1]:45000"
