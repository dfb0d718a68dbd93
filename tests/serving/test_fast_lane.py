"""The fast lane: what it hands over and why, and what it does when the system is out of a resource."""

import errno
import os
import select
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from itertools import repeat
from typing import Any

import pytest
import trio

from tests.conftest import Start, _starter
from tests.helpers.servers import (
    JAM,
    FailingListener,
    Running,
    assert_answered,
    make_service,
    receive_all,
    reset_on_close,
    start_lane,
    start_tcp,
    until,
)
from triojam.core.counters import Counters
from triojam.core.protocol import REFUSALS
from triojam.core.reasons import AcceptError, Disconnect, HandoverCause, Refusal, Rejection, SendError
from triojam.serving.client import Client
from triojam.serving.deadlines import Timeouts
from triojam.serving.fast_lane import EVENTS_AT_ONCE, HANDOVERS_AT_ONCE, FastLane
from triojam.serving.listeners import ACCEPT_PAUSE, AcceptQueues
from triojam.serving.streams import TcpStream


@pytest.fixture
async def start_fast(nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Start servers whose fast lane is on; afterwards nothing may be left."""
    async for starter in _starter(start_lane, nursery):
        yield starter


def handed_over(server: Running) -> dict[str, int]:
    """Return how many clients were handed over, by cause."""
    return {str(cause): count for cause, count in server.counters.handovers.items() if count}


WITHOUT_EPOLL = """
import select
import trio
epoll = select.epoll
del select.epoll
import triojam.server
select.epoll = epoll  # Trio itself needs it here

async def main():
    settings = triojam.Settings(host="127.0.0.1", port=0, metrics_port=None)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(triojam.serve, settings)
        async with await trio.open_tcp_stream(*server.addresses[0]) as client:
            await client.send_all(b"TIME\\r\\n")
            print((await client.receive_some())[:4].decode())
        server.drain()

trio.run(main)
"""


def test_without_epoll_the_portable_path_serves() -> None:
    """On a system without epoll, the default settings serve without the lane."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EPOLL], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("JAM \n", "")


async def test_a_client_with_lines_in_pieces_stays_in_the_lane(start_fast: Start) -> None:
    """A client whose lines all come in pieces is not handed over."""
    server = await start_fast()
    client = await server.connect()
    for _ in range(20):
        await assert_answered(client, b"TIME\r\nTI")
        await client.send_all(b"M")
        await until(server.midline)
        await assert_answered(client, b"E\r\n")
    assert handed_over(server) == {}
    assert server.counters.request_receive.count == 20


@pytest.mark.parametrize(
    ("sent", "end", "cause"),
    [
        (b"TIME\r\nHELLO\r\n", True, "line"),
        (b"QUIT\r\n", True, "line"),
        (b"x" * 600, True, "line"),
        (b"TIME", True, "eof"),
        (b"TI", False, "timeout"),
    ],
)
async def test_a_client_is_handed_over_once(start_fast: Start, sent: bytes, *, end: bool, cause: str) -> None:
    """A client that sends anything but plain requests in time is handed over once, with its cause."""
    server = await start_fast(line_timeout=0.05)
    answers = await server.ask(sent, end=end)
    assert handed_over(server) == {cause: 1}
    assert answers.startswith(b"ERROR timeout: ") == (cause == "timeout")


async def test_plain_requests_need_no_task(start_fast: Start) -> None:
    """Plain, odd and pipelined requests, and the end of the stream, are served in the lane."""
    server = await start_fast()
    assert await server.ask(b"TIME\r\nTIME threading \r\n" + b"TIME\r\n" * 500) == JAM * 502
    assert handed_over(server) == {}
    assert server.counters.disconnects[Disconnect.EOF] == 1


async def test_a_cancelled_lane_closes_and_counts_its_clients(nursery: trio.Nursery) -> None:
    """A cancellation closes the lane's clients, and counts their unfinished lines."""
    server = await start_lane(nursery)
    idle, midline = await server.connect(), await server.connect()
    await assert_answered(midline, b"TIME\r\nTI")
    await until(lambda: server.counters.connections_open == 2)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await until(lambda: server.counters.connections_open == 0)
        assert await receive_all(idle) == await receive_all(midline) == b""
        await server.close_clients()
    assert server.counters.disconnects[Disconnect.DRAIN] == 2
    assert server.counters.rejected[Rejection.DRAINING] == 1
    assert server.counters.unaccounted == 0


async def test_a_cancelled_lane_counts_the_answers_of_queued_hand_overs(nursery: trio.Nursery) -> None:
    """A client that is queued for the handler when the lane is closed is closed and counted, too."""
    server = await start_lane(nursery)
    assert server.lane is not None
    client = await server.connect()
    await until(lambda: server.counters.connections_open == 1)
    (fd,) = server.lane._active
    server.lane._settle(fd, JAM * 3, 3, len(JAM) + 2, 0.0)  # the kernel took one answer and two bytes
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await until(lambda: server.counters.connections_open == 0)
        await client.aclose()
    assert server.counters.responses == 1
    assert server.counters.send_errors[SendError.SHUTDOWN] == 2
    assert server.counters.unaccounted == 0


@pytest.mark.parametrize(
    ("code", "counted"),
    [
        (errno.EMFILE, AcceptError.EMFILE),
        (errno.ENFILE, AcceptError.ENFILE),
        (errno.ENOBUFS, AcceptError.OTHER),
    ],
)
def test_a_lasting_accept_error_pauses_every_listening_socket(code: int, counted: AcceptError) -> None:
    """An error on two listening sockets in one turn is counted twice and pauses both; both resume later."""
    service = make_service()
    counters = service.counters
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [sock.getsockname() for sock in sockets]
    with select.epoll() as epoll:
        queues = AcceptQueues(sockets, epoll, service, deque())
        whole = dict(queues.sockets)
        for fd, sock in whole.items():
            stand_in: Any = FailingListener(sock, [code])
            queues.sockets[fd] = stand_in
            assert queues.accept(fd, 5.0).clients == []
        assert queues.paused_until == 5.0 + ACCEPT_PAUSE
        clients = [socket.create_connection(address) for address in addresses]
        assert epoll.poll(0) == []
        queues.sockets.update(whole)
        queues.resume()
        counters.connections_limit = 10
        for fd, _ in epoll.poll(1):
            for newcomer in queues.accept(fd, 6.0).clients:
                newcomer.sock.close()
        queues.close()
        for client in clients:
            client.close()
    assert counters.accept_errors[counted] == 2
    assert counters.connections == 2


async def test_a_drain_refuses_all_queued_clients_beyond_the_limit() -> None:
    """In a drain, all queued clients beyond the connection limit are refused with an answer."""
    lane, counters, address = await lane_of()
    counters.connections_limit = 0
    clients = [socket.create_connection(address) for _ in range(200)]
    await lane.drain()
    await lane.aclose()
    for client in clients:
        assert client.recv(100) == REFUSALS[Refusal.BUSY]
        client.close()
    assert counters.connections_rejected[Refusal.BUSY] == 200


def test_accepting_skips_a_connection_that_failed_in_the_queue() -> None:
    """ECONNABORTED is counted, and the next connection is accepted at once."""
    service = make_service()
    counters = service.counters
    with select.epoll() as epoll, socket.create_server(("127.0.0.1", 0)) as sock:
        queues = AcceptQueues([sock], epoll, service, deque())
        (fd,) = queues.sockets
        stand_in: Any = FailingListener(sock, repeat(errno.ECONNABORTED))
        queues.sockets[fd] = stand_in
        assert queues.accept(fd, 5.0).clients == []
        assert queues.paused_until is None
    assert counters.accept_errors[AcceptError.ECONNABORTED] > 1


async def test_a_reset_while_answers_are_due_makes_send_errors(start_fast: Start) -> None:
    """If the connection is broken when the answers are written, each answer is a send error."""
    server = await start_fast()
    assert server.lane is not None
    await server.connect()
    await until(lambda: server.counters.connections_open == 1)
    (fd,) = server.lane._active
    server.lane._settle(fd, JAM * 2, 2, -1, 0.0)
    assert server.counters.send_errors[SendError.RESET] == 2
    assert server.counters.disconnects[Disconnect.RESET] == 1
    assert server.counters.unaccounted == 0


async def lane_of(*, line_timeout: float = 10.0) -> tuple[FastLane, Counters, tuple[str, int]]:
    """Make a lane whose `accept` is not called, its counters, and its address."""
    service = make_service()
    service.timeouts = Timeouts(line=line_timeout)
    sock = socket.create_server(("127.0.0.1", 0), backlog=500)
    return FastLane([sock], service), service.counters, sock.getsockname()


async def test_queued_hand_overs_do_not_delay_the_lane() -> None:
    """While clients wait to be handed over, the clients in the lane are answered."""
    lane, counters, address = await lane_of()
    async with lane, await trio.open_tcp_stream(*address) as good:
        crowd = [await trio.open_tcp_stream(*address) for _ in range(HANDOVERS_AT_ONCE + 8)]
        while len(lane._active) <= len(crowd):
            lane._serve_turn()
            await trio.lowlevel.checkpoint()
        for client in crowd:
            await client.send_all(b"HELLO\r\n")
        (await lane.accept()).stream.close()
        assert len(lane._handovers) == len(crowd) - 1
        await good.send_all(b"TIME\r\n")
        for _ in range(HANDOVERS_AT_ONCE):
            (await lane.accept()).stream.close()
        assert counters.responses == 1
        for client in crowd:
            await client.aclose()


async def test_overdue_lines_are_handed_over_in_small_batches() -> None:
    """If many lines are overdue at once, only a few clients are queued for the handler at a time."""
    lane, counters, address = await lane_of(line_timeout=0.05)
    async with lane, trio.open_nursery() as nursery:
        clients = [await trio.open_tcp_stream(*address) for _ in range(200)]
        for client in clients:
            await client.send_all(b"TI")
        while len(lane._partials) < 200:
            lane._serve_turn()
            await trio.lowlevel.checkpoint()
        nursery.start_soon(lane.watch)
        for _ in range(200):
            async with await lane.accept():
                assert len(lane._handovers) < HANDOVERS_AT_ONCE + EVENTS_AT_ONCE
        nursery.cancel_scope.cancel()
    assert counters.handovers[HandoverCause.TIMEOUT] == 200
    for client in clients:
        await client.aclose()


async def test_a_long_line_is_handed_over(start_fast: Start) -> None:
    """The lane does not search a long line in pieces again and again, where long lines are allowed."""
    server = await start_fast(max_line_bytes=0)
    client = await server.connect()
    await client.send_all(b"TIME" + b"x" * 5000)
    await until(lambda: server.counters.handovers[HandoverCause.LINE] == 1)
    await assert_answered(client, b"\r\n")


class FullEpoll:
    """An epoll that cannot watch another socket."""

    def __init__(self, epoll: select.epoll) -> None:
        self.epoll = epoll

    def register(self, *_args: int) -> None:
        """Fail, as for a user with too many watches (epoll_ctl(2))."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> object:
        return getattr(self.epoll, name)


async def test_a_client_that_epoll_cannot_watch_is_closed(start_fast: Start) -> None:
    """The client is closed and counted, and other clients are served."""
    server = await start_fast()
    lane = server.lane
    assert lane is not None
    good = await server.connect()
    await assert_answered(good)
    epoll = lane._epoll
    lane._epoll = FullEpoll(epoll)  # type: ignore[assignment]  # a stand-in
    unlucky = await server.connect()
    assert await receive_all(unlucky) == b""
    lane._epoll = epoll
    assert server.counters.disconnects[Disconnect.INTERNAL_ERROR] == 1
    assert server.counters.connections_open == 1
    await assert_answered(good)
    assert await server.ask(b"TIME\r\n") == JAM


@pytest.mark.parametrize(
    ("sent", "requests", "shutdown", "rejected"),
    [(b"QUIT\r\n", 0, 0, {}), (b"TIME\r\nTIME\r\nX\r\nTI", 4, 2, {"bad_command": 1, "draining": 1})],
)
async def test_a_closed_lane_counts_what_it_has_read(
    sent: bytes, requests: int, shutdown: int, rejected: dict[str, int]
) -> None:
    """Lines of a queued hand-over are counted when the lane is closed, as the handler would count them."""
    lane, counters, address = await lane_of()
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(sent)
        while not lane._handovers:
            lane._serve_turn()
            await trio.lowlevel.checkpoint()
        await lane.aclose()
    assert counters.requests == requests
    assert counters.send_errors[SendError.SHUTDOWN] == shutdown
    assert {reason: count for reason, count in counters.rejected.items() if count} == rejected
    assert counters.unaccounted == 0
    assert counters.connections_open == 0


async def test_a_reset_counts_unsent_answers_and_the_line_behind_them(nursery: trio.Nursery) -> None:
    """If the connection breaks before the answers are taken, the unfinished line behind them is counted."""
    server = await start_tcp(nursery)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    reset_on_close(ours)
    ours.close()
    theirs.setblocking(False)  # noqa: FBT003  # the standard library's signature
    server.counters.opened()
    client = Client(server.handler._service, TcpStream(theirs, sending=JAM), since=trio.current_time())
    client.received, client.first_byte = b"TI", trio.current_time()
    client.owe(JAM, 1, trio.current_time())
    await server.handler.handle(client)
    assert server.counters.send_errors[SendError.RESET] == 1
    assert server.counters.rejected[Rejection.INCOMPLETE] == 1
    assert server.counters.unaccounted == 0
    nursery.cancel_scope.cancel()
