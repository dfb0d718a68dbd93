"""The bounds of one step of the event loop, and of what one client may take from the others.

Budgets are counted in steps, passes of the scheduler and requests, not in seconds.
"""

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.conftest import Start
from tests.helpers.proxy_headers import LOCAL
from tests.helpers.relays import connect_now, send_now
from tests.helpers.servers import (
    JAM,
    PATIENCE,
    ClientEnd,
    Running,
    raw,
    receive_all,
    start_lane,
    until,
)
from triojam.core.protocol import LINES_AT_ONCE, REQUEST
from triojam.core.reasons import Disconnect, HandoverCause, Rejection
from triojam.serving.deadlines import RELEASED_AT_ONCE
from triojam.serving.fast_lane import HANDOVERS_AT_ONCE
from triojam.serving.streams import RECEIVE_BYTES

# How many requests a client's task may decide in one step: lines decided one by one, and plain requests.
MOST_REQUESTS = LINES_AT_ONCE + (RECEIVE_BYTES + 512) // len(REQUEST)


class Meter(trio.abc.Instrument):
    """Counts the requests in each step of a client's task, and the passes of the scheduler.

    most: the most requests in one step. passes: the passes so far.
    """

    def __init__(self, server: Running) -> None:
        self.most = 0
        self.passes = 0
        self._counters = server.counters
        self._before = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002  # Trio's interface
        """Note where the counter stands."""
        self._before = self._counters.requests

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Look how far the counter has moved; the lane's own task serves many clients in a step."""
        if "handle" in task.name or "_run_handler" in task.name:
            self.most = max(self.most, self._counters.requests - self._before)

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002  # Trio's interface
        """Count a pass."""
        self.passes += 1


@asynccontextmanager
async def metered(server: Running) -> AsyncIterator[Meter]:
    """Count while the body runs."""
    meter = Meter(server)
    trio.lowlevel.add_instrument(meter)
    try:
        yield meter
    finally:
        trio.lowlevel.remove_instrument(meter)


async def flood(client: ClientEnd, data: bytes) -> None:
    """Send until the connection is closed."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            await client.send_all(data)


async def receive_to_end(client: ClientEnd) -> None:
    """Receive until the connection is closed."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while await client.receive_some(65536):
            pass


HOSTILE = [
    b"\n" * 4096,
    b"TIME\r\n" * 2048,
    (b"\n" * 9 + b"TIME\r\n") * 800,
    b"TIME\nTIME\r\n" * 1000,
    b"x\r\nTIME please\r\n" * 600,
    b"\r\n" * 4000,
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: repr(data[:16]))
async def test_a_step_is_bounded_whatever_is_sent(start: Start, data: bytes) -> None:
    """A step of a client's task decides at most one read of plain requests and 64 other lines."""
    server = await start(error_budget=0)
    client = await server.connect()
    async with trio.open_nursery() as nursery, metered(server) as meter:
        nursery.start_soon(client.send_all, b"x\r\n" + data)
        nursery.start_soon(receive_to_end, client)
        await until(lambda: server.counters.requests >= 1 + data.count(b"\n"))
        nursery.cancel_scope.cancel()
    assert 0 < meter.most <= MOST_REQUESTS


@asynccontextmanager
async def busy_tasks(server: Running, count: int = 20) -> AsyncIterator[None]:
    """Keep clients pipelining; each has a task, because it has sent one bad line."""
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            client = await server.connect()
            await client.send_all(b"x\r\n")
            nursery.start_soon(flood, client, b"TIME\r\n" * 1000)
            nursery.start_soon(receive_to_end, client)
        await until(lambda: server.counters.rejected[Rejection.BAD_COMMAND] == count)
        yield
        nursery.cancel_scope.cancel()


def begun(server: Running, piece: bytes) -> int:
    """Return from how many clients the server has read `piece` of a line."""
    in_lane = [partial for partial, _ in server.lane._partials.values()] if server.lane is not None else []
    in_tasks = [bytes(client.protocol._partial) for client in server.handler._clients]
    return in_lane.count(piece) + in_tasks.count(piece)


def send_at_once(client: ClientEnd, data: bytes) -> None:
    """Send without a turn for the server."""
    assert raw(client).socket._sock.send(data) == len(data)  # type: ignore[attr-defined]  # not Trio's send


async def test_many_overdue_lines_end_in_one_pass(start_socket: Start) -> None:
    """While other clients are busy, overdue lines end by the dozen in each pass, not one by one."""
    server = await start_socket(line_timeout=3.0)
    crowd = [await server.connect() for _ in range(4 * HANDOVERS_AT_ONCE)]
    for client in crowd:
        await client.send_all(b"TI?")  # which the others never send
    await until(lambda: begun(server, b"TI?") == len(crowd))
    async with busy_tasks(server):
        time.sleep(3.2)  # noqa: ASYNC251  # a blocked loop makes all of them late at once
        async with metered(server) as meter:
            await until(lambda: server.counters.rejected[Rejection.TIMEOUT] == len(crowd))
    assert server.lane is None or server.counters.handovers[HandoverCause.TIMEOUT] == len(crowd)
    assert meter.passes < len(crowd) / 2  # one per pass would need a pass for each


async def test_a_new_client_is_accepted_within_a_few_passes(start_socket: Start) -> None:
    """A new client behind a crowd in the accept queue is accepted within a few passes."""
    server = await start_socket()
    assert server.server is not None
    address = (server.server.tls_addresses or server.server.addresses)[0]
    async with busy_tasks(server):
        before = server.counters.connections
        crowd = [socket.create_connection(address) for _ in range(200)]
        async with metered(server) as meter:
            await until(lambda: server.counters.connections - before == len(crowd))
        assert meter.passes < len(crowd) / 4
    for client in crowd:
        client.close()


async def test_a_drain_answers_requests_that_come_while_idle_clients_are_closed(start_socket: Start) -> None:
    """A client that asks while a drain closes many idle clients is answered."""
    server = await start_socket()
    idle = [await server.connect() for _ in range(10 * RELEASED_AT_ONCE)]
    await until(lambda: server.counters.connections_open == len(idle))
    server.drain()
    await until(lambda: server.counters.draining)
    for client in idle[::7]:
        await client.send_all(b"TIME\r\n")
    for number, client in enumerate(idle):
        assert await receive_all(client) == (JAM if number % 7 == 0 else b"")
        await client.aclose()
    await server.finished.wait()
    assert server.counters.disconnects[Disconnect.DRAIN] == len(idle)


async def test_a_drain_ends_clients_that_pipeline_without_end(start_socket: Start) -> None:
    """Clients that pipeline without end, in tasks and in the lane, are cut off after the grace time."""
    server = await start_socket(grace=0.5)
    streams = [await server.connect() for _ in range(10)]
    async with busy_tasks(server, 10), trio.open_nursery() as nursery:
        for client in streams:
            nursery.start_soon(flood, client, b"TIME\r\n" * 1000)
            nursery.start_soon(receive_to_end, client)
        await until(lambda: server.counters.requests > 10_000)
        server.drain()
        with trio.fail_after(PATIENCE):
            await server.finished.wait()
        nursery.cancel_scope.cancel()


async def test_many_late_headers_are_read_in_one_pass(start_plain: Start) -> None:
    """While other clients are busy, the handler reads dozens of late PROXY headers in each pass."""
    server = await start_plain(proxies="127.0.0.2")
    async with busy_tasks(server), metered(server) as meter:
        crowd = [connect_now(server, host="127.0.0.2") for _ in range(4 * HANDOVERS_AT_ONCE)]
        waiting = len(server.handler._clients) + len(crowd)
        await until(lambda: len(server.handler._clients) == waiting)
        assert meter.passes < HANDOVERS_AT_ONCE
        for client in crowd:
            send_now(client, LOCAL)
        meter.passes = 0
        await until(lambda: not any(each.relayed and each.relayed.waits for each in server.handler._clients))
        assert meter.passes < HANDOVERS_AT_ONCE
    for client in crowd:
        await client.aclose()


async def test_many_hand_overs_start_in_one_pass(nursery: trio.Nursery) -> None:
    """Clients that need a task at the same moment get it in the same pass, up to a limit."""
    server = await start_lane(nursery)
    clients = [await server.connect() for _ in range(3 * HANDOVERS_AT_ONCE)]
    await until(lambda: server.counters.connections_open == len(clients))
    async with metered(server) as meter:
        for client in clients:
            send_at_once(client, b"HELLO\r\n")
        await until(lambda: len(server.handler._clients) == len(clients))
    assert meter.passes < HANDOVERS_AT_ONCE
    await server.close_clients()
    nursery.cancel_scope.cancel()
