"""The fast lane: what it hands over, and why; what it does when the system runs out of something."""

import errno
import os
import select
import socket
import struct
import subprocess
import sys

import pytest
import trio

from tests.helpers.servers import (
    JAM,
    Running,
    make_service,
    receive_all,
    receive_exactly,
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


def handed_over(server: Running) -> dict[str, int]:
    """Return the causes for which clients were handed over, and how many were."""
    return {str(cause): count for cause, count in server.counters.handovers.items() if count}


WITHOUT_EPOLL = """
import select
import trio, hypercorn.trio
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
    """Where the system has no epoll, everything imports, and the default settings serve without the lane."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EPOLL], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("JAM \n", "")


async def test_a_client_with_cut_lines_stays(nursery: trio.Nursery) -> None:
    """Being cut in the middle of a line, even each time, does not cost a client the lane."""
    server = await start_lane(nursery)
    client = await server.connect()
    for _ in range(20):
        await client.send_all(b"TIME\r\nTI")
        assert await receive_exactly(client, len(JAM)) == JAM
        await client.send_all(b"M")
        await until(server.midline)
        await client.send_all(b"E\r\n")
        assert await receive_exactly(client, len(JAM)) == JAM
    assert handed_over(server) == {}
    assert server.counters.request_receive.count == 20
    await client.aclose()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("sent", "cause"),
    [(b"TIME\r\nHELLO\r\n", "line"), (b"QUIT\r\n", "line"), (b"x" * 600, "line"), (b"TIME", "eof")],
)
async def test_hand_overs_by_cause(nursery: trio.Nursery, sent: bytes, cause: str) -> None:
    """What is not a plain request is the handler's: it is handed over once, and served there to its end."""
    server = await start_lane(nursery)
    await server.ask(sent)
    assert handed_over(server) == {cause: 1}
    await server.close_clients()
    nursery.cancel_scope.cancel()


async def test_plain_requests_need_no_task(nursery: trio.Nursery) -> None:
    """Plain, odd and pipelined requests, and the end of the stream, are all served in the lane."""
    server = await start_lane(nursery)
    assert await server.ask(b"TIME\r\nTIME threading \r\n" + b"TIME\r\n" * 500) == JAM * 502
    assert handed_over(server) == {}
    assert server.counters.disconnects[Disconnect.EOF] == 1
    await server.close_clients()
    nursery.cancel_scope.cancel()


async def test_answers_that_do_not_fit_are_sent_by_the_handler(nursery: trio.Nursery) -> None:
    """A client that does not take its answers at once is handed over, and gets them all, in order."""
    server = await start_lane(nursery)
    client = await server.connect()
    count = 600_000
    async with trio.open_nursery() as sending:
        sending.start_soon(client.send_all, b"TIME\r\n" * count)
        await until(lambda: server.counters.handovers[HandoverCause.SEND] == 1)
        assert await receive_exactly(client, count * len(JAM)) == JAM * count
    assert server.counters.responses == count
    await client.aclose()
    nursery.cancel_scope.cancel()


async def test_a_line_that_is_overdue(nursery: trio.Nursery) -> None:
    """A line in pieces whose deadline passes is handed over, and the handler says so to the client."""
    server = await start_lane(nursery, line_timeout=0.05)
    assert (await server.ask(b"TI", end=False)).startswith(b"ERROR timeout: ")
    assert handed_over(server) == {"timeout": 1}
    assert server.counters.rejected[Rejection.TIMEOUT] == 1
    await server.close_clients()
    nursery.cancel_scope.cancel()


async def test_cancelled_with_clients_in_the_lane(nursery: trio.Nursery) -> None:
    """Cancelling closes the lane's clients, and accounts for the lines they were in the middle of."""
    server = await start_lane(nursery)
    idle, midline = await server.connect(), await server.connect()
    await midline.send_all(b"TIME\r\nTI")
    assert await receive_exactly(midline, len(JAM)) == JAM
    await until(lambda: server.counters.connections_open == 2)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await until(lambda: server.counters.connections_open == 0)
        assert await receive_all(idle) == await receive_all(midline) == b""
        await server.close_clients()
    assert server.counters.disconnects[Disconnect.DRAIN] == 2
    assert server.counters.rejected[Rejection.DRAINING] == 1
    assert server.counters.unaccounted == 0


async def test_abandoned_hand_overs_are_accounted_for(nursery: trio.Nursery) -> None:
    """A client that is queued for the handler when the lane is closed is closed and counted with it."""
    server = await start_lane(nursery)
    assert server.lane is not None
    client = await server.connect()
    await until(lambda: server.counters.connections_open == 1)
    (fd,) = server.lane._active
    server.lane._settle(fd, JAM * 3, 3, len(JAM) + 2, 0.0)  # the kernel took one and a bit
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await until(lambda: server.counters.connections_open == 0)
        await client.aclose()
    assert server.counters.responses == 1
    assert server.counters.send_errors[SendError.SHUTDOWN] == 2
    assert server.counters.unaccounted == 0


class BrokenListener:
    """A listening socket whose accept fails."""

    def __init__(self, sock: socket.socket, code: int) -> None:
        self.sock = sock
        self.code = code

    def accept(self) -> None:
        """Fail."""
        raise OSError(self.code, os.strerror(self.code))

    def close(self) -> None:
        """Close."""
        self.sock.close()


@pytest.mark.parametrize(
    ("code", "counted"),
    [
        (errno.EMFILE, AcceptError.EMFILE),
        (errno.ENFILE, AcceptError.ENFILE),
        (errno.ENOBUFS, AcceptError.OTHER),
    ],
)
def test_out_of_something_pauses_accepting_on_every_socket_once(code: int, counted: AcceptError) -> None:
    """An error on two listening sockets in one turn is counted twice, pauses both, and resumes both."""
    service = make_service()
    counters = service.counters
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [sock.getsockname() for sock in sockets]
    with select.epoll() as epoll:
        queues = AcceptQueues(sockets, epoll, service)
        whole = dict(queues.sockets)
        for fd, sock in whole.items():
            queues.sockets[fd] = BrokenListener(sock, code)  # type: ignore[assignment]  # a stand-in
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


async def test_a_full_queue_of_refused_clients_is_emptied(nursery: trio.Nursery) -> None:
    """When the queue is emptied for the last time, those over the cap are all told so."""
    lane, counters, address = await lane_of()
    counters.connections_limit = 0
    clients = [socket.create_connection(address) for _ in range(200)]
    await lane.drain()
    await lane.aclose()
    for client in clients:
        assert client.recv(100) == REFUSALS[Refusal.BUSY]
        client.close()
    assert counters.connections_rejected[Refusal.BUSY] == 200


def test_a_connection_that_failed_in_the_queue_is_passed_over() -> None:
    """ECONNABORTED is counted, and accepting goes on with the next connection at once."""
    service = make_service()
    counters = service.counters
    with select.epoll() as epoll, socket.create_server(("127.0.0.1", 0)) as sock:
        queues = AcceptQueues([sock], epoll, service)
        (fd,) = queues.sockets
        queues.sockets[fd] = BrokenListener(sock, errno.ECONNABORTED)  # type: ignore[assignment]  # a stand-in
        assert queues.accept(fd, 5.0).clients == []
        assert queues.paused_until is None
    assert counters.accept_errors[AcceptError.ECONNABORTED] > 1


async def test_a_reset_while_an_answer_is_due(nursery: trio.Nursery) -> None:
    """When the connection is found broken as the answer is written, the time is a send error."""
    server = await start_lane(nursery)
    assert server.lane is not None
    client = await server.connect()
    await until(lambda: server.counters.connections_open == 1)
    (fd,) = server.lane._active
    server.lane._settle(fd, JAM * 2, 2, -1, 0.0)
    assert server.counters.send_errors[SendError.RESET] == 2
    assert server.counters.disconnects[Disconnect.RESET] == 1
    assert server.counters.unaccounted == 0
    await client.aclose()
    nursery.cancel_scope.cancel()


async def lane_of(*, line_timeout: float = 10.0) -> tuple[FastLane, Counters, tuple[str, int]]:
    """Make a lane that nobody calls `accept` of, and its address."""
    service = make_service()
    service.timeouts = Timeouts(line=line_timeout)
    sock = socket.create_server(("127.0.0.1", 0), backlog=500)
    return FastLane([sock], service), service.counters, sock.getsockname()


async def test_hand_overs_do_not_hold_up_the_others() -> None:
    """While clients wait to be handed over, those in the lane go on being answered, once a turn."""
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


async def test_a_crowd_is_handed_over_little_by_little() -> None:
    """However many lines are overdue at once, few are queued for the handler at a time."""
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


async def test_a_long_line_is_the_handlers(nursery: trio.Nursery) -> None:
    """A line that goes on and on, where that is allowed, is not looked at again for each piece."""
    server = await start_lane(nursery, max_line_bytes=0)
    client = await server.connect()
    await client.send_all(b"TIME" + b"x" * 5000)
    await until(lambda: server.counters.handovers[HandoverCause.LINE] == 1)
    await client.send_all(b"\r\n")
    assert await receive_exactly(client, len(JAM)) == JAM
    await server.close_clients()
    nursery.cancel_scope.cancel()


class FullEpoll:
    """An epoll that has no room for one more client."""

    def __init__(self, epoll: select.epoll) -> None:
        self.epoll = epoll

    def register(self, *_args: int) -> None:
        """Fail, as for a user with too many watches (epoll_ctl(2))."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> object:
        return getattr(self.epoll, name)


async def test_a_client_that_cannot_be_watched(nursery: trio.Nursery) -> None:
    """It is closed and counted, and nobody else notices."""
    server = await start_lane(nursery)
    lane = server.lane
    assert lane is not None
    good = await server.connect()
    await good.send_all(b"TIME\r\n")
    assert await receive_exactly(good, len(JAM)) == JAM
    epoll = lane._epoll
    lane._epoll = FullEpoll(epoll)  # type: ignore[assignment]  # a stand-in
    unlucky = await server.connect()
    assert await receive_all(unlucky) == b""
    lane._epoll = epoll
    assert server.counters.disconnects[Disconnect.INTERNAL_ERROR] == 1
    assert server.counters.connections_open == 1
    await good.send_all(b"TIME\r\n")
    assert await receive_exactly(good, len(JAM)) == JAM
    assert await server.ask(b"TIME\r\n") == JAM
    await server.close_clients()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("sent", "requests", "shutdown", "rejected"),
    [(b"QUIT\r\n", 0, 0, {}), (b"TIME\r\nTIME\r\nX\r\nTI", 4, 2, {"bad_command": 1, "draining": 1})],
)
async def test_what_was_read_of_an_abandoned_client_is_accounted_for(
    sent: bytes, requests: int, shutdown: int, rejected: dict[str, int]
) -> None:
    """A client whose lines were to be decided by a handler that does not come is counted as it would have."""
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


async def test_a_cut_line_behind_unsent_answers(nursery: trio.Nursery) -> None:
    """If the connection breaks before the answers are taken, the line that was begun counts as well."""
    server = await start_tcp(nursery)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
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
