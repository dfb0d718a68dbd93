"""The handler alone, on streams in memory, with a mock clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers.memory import MemoryStream
from tests.helpers.servers import JAM, balanced, make_service, receive_all, settings_for_test
from triojam.core.reasons import Disconnect, Rejection, SendError
from triojam.serving.client import Client
from triojam.serving.deadlines import RELEASED_AT_ONCE
from triojam.serving.handler import Handler
from triojam.serving.service import Service
from triojam.serving.streams import SecuredStream


class FailingStream(MemoryStream):
    """A stream whose send raises an unexpected exception."""

    def send_now(self, data: bytes) -> bool:
        """Fail."""
        raise RuntimeError(len(data))


class World:
    """A handler, and the nursery of its clients."""

    def __init__(self, service: Service, clients: trio.Nursery) -> None:
        self.service = service
        self.counters = service.counters
        self.handler = Handler(service)
        self._clients = clients

    def serve(self, stream: MemoryStream) -> MemoryStream:
        """Serve one stream, as for a listener."""
        self.counters.opened()
        client = Client(self.service, stream, since=trio.current_time())
        self._clients.start_soon(self.handler.handle, client)
        return stream


@asynccontextmanager
async def world(**settings: float) -> AsyncIterator[World]:
    """Run a handler; at the end all clients must have ended, and the counters must balance."""
    service = make_service(settings_for_test(max_connections=10_000, **settings))
    async with trio.open_nursery() as beside:
        async with trio.open_nursery() as clients:
            it = World(service, clients)
            beside.start_soon(it.handler.keep_time)
            yield it
        beside.cancel_scope.cancel()
    await balanced(service.counters)


async def test_untaken_answers_are_send_errors_at_the_send_timeout(autojump_clock: MockClock) -> None:
    """A client that does not read is cut off at the send timeout, and its untaken answers are send errors."""
    async with world(send_timeout=3.0) as it:
        began = trio.current_time()
        stream = it.serve(MemoryStream(room=len(JAM) + 1))
        await stream.client.send_all(b"TIME\r\n" * 3)
        await receive_all_patiently(stream.client)
        assert trio.current_time() - began == 3.0
    assert it.counters.responses == 1
    assert it.counters.send_errors[SendError.TIMEOUT] == 2
    assert it.counters.disconnects[Disconnect.SEND_TIMEOUT] == 1


async def test_an_exception_in_a_send_counts_the_answers(autojump_clock: MockClock) -> None:
    """If a send raises an unexpected exception, the answers are send errors."""
    async with world() as it:
        stream = it.serve(FailingStream())
        await stream.client.send_all(b"TIME\r\nTIME\r\nx\r\n")
    assert it.counters.send_errors[SendError.RESET] == 2
    assert it.counters.internal_errors == 1
    assert it.counters.disconnects[Disconnect.INTERNAL_ERROR] == 1


@pytest.mark.parametrize("sent", [b"TIME\r\n", b"TIME\r\nTIME please\r\n"])
async def test_an_exception_of_the_clock_leaves_no_request_uncounted(
    autojump_clock: MockClock, sent: bytes
) -> None:
    """If the clock raises an exception, all requests are accounted for."""

    def explode() -> bytes:
        raise RuntimeError

    async with world() as it:
        it.service.jam = explode
        stream = it.serve(MemoryStream())
        await stream.client.send_all(sent)
    assert it.counters.internal_errors == 1


async def test_a_cancelled_send_counts_the_answers(autojump_clock: MockClock) -> None:
    """If serving is cancelled during a send, the untaken answers are send errors."""
    async with world() as it:
        stream = it.serve(MemoryStream(room=0))
        await send(stream, b"TIME\r\nTI")
        it._clients.cancel_scope.cancel()
    assert it.counters.send_errors[SendError.SHUTDOWN] == 1
    assert it.counters.rejected[Rejection.DRAINING] == 1
    assert it.counters.disconnects[Disconnect.DRAIN] == 1


@pytest.mark.parametrize(
    ("sent", "seconds", "reason"),
    [
        (b"", 60.0, Disconnect.IDLE),
        (b"TIME\r\n", 60.0, Disconnect.IDLE),
        (b"TIME\r\nTI", 10.0, Disconnect.LINE_TIMEOUT),
    ],
)
async def test_deadlines_are_exact(
    autojump_clock: MockClock, sent: bytes, seconds: float, reason: Disconnect
) -> None:
    """A client has exactly ten seconds from the first byte of a line, and sixty without one."""
    async with world() as it:
        stream = it.serve(MemoryStream())
        if sent:
            await stream.client.send_all(sent)
        began = trio.current_time()
        await receive_all_patiently(stream.client)
        assert trio.current_time() - began == seconds
        await stream.client.aclose()
    assert it.counters.disconnects[reason] == 1


async def test_the_line_timeout_does_not_run_while_answers_are_sent(mock_clock: MockClock) -> None:
    """A line that began before a client stopped reading has its whole time after the client reads again."""
    async with world(line_timeout=2.0, send_timeout=10.0) as it:
        stream = it.serve(MemoryStream(room=len(JAM)))
        await send(stream, b"TIME\r\nTIME\r\nTI")
        await jump(mock_clock, 5.0)
        stream.room = 1000
        stream.look()
        await wait_all_tasks_blocked()
        await jump(mock_clock, 1.5)
        await stream.client.send_all(b"ME\r\nQUIT\r\n")
        await stream.client.send_stream.aclose()
        assert await receive_all(stream.client) == JAM * 3
    assert it.counters.rejected[Rejection.TIMEOUT] == 0


async def test_requests_that_came_during_a_standstill_are_answered(mock_clock: MockClock) -> None:
    """After a standstill, the server reads once more, and answers the requests that have come."""
    async with world() as it:
        idle, midline, silent = [it.serve(MemoryStream()) for _ in range(3)]
        await send(midline, b"TI")
        # These bytes arrive while no task runs, and the deadlines pass.
        idle._received, midline._received = b"TIME\r\n", b"ME\r\n"
        await jump(mock_clock, 3600.0)
        for stream in (idle, midline):
            await stream.client.send_stream.aclose()
            assert await receive_all(stream.client) == JAM
        assert await receive_all(silent.client) == b""
    assert it.counters.disconnects[Disconnect.IDLE] == 1
    assert it.counters.disconnects[Disconnect.EOF] == 2


class SecuredMemoryStream(MemoryStream, SecuredStream):
    """A stream with a handshake that the test ends."""

    secured = True

    def __init__(self) -> None:
        super().__init__()
        self.arrived = False
        self.shaken = trio.Event()

    async def begin(self) -> None:
        """Shake hands."""
        await self.shaken.wait()

    def may_go_on(self) -> bool:
        """Return the value that the test has set."""
        return self.arrived


async def test_a_handshake_with_new_bytes_goes_on_after_a_standstill(mock_clock: MockClock) -> None:
    """After a standstill, a handshake for which bytes have come goes on; one without bytes times out."""
    async with world(line_timeout=2.0) as it:
        going_on, late = it.serve(SecuredMemoryStream()), it.serve(SecuredMemoryStream())
        assert isinstance(going_on, SecuredMemoryStream)
        going_on.arrived = True
        await wait_all_tasks_blocked()
        await jump(mock_clock, 3600.0)
        going_on.shaken.set()
        await going_on.client.send_all(b"TIME\r\n")
        await going_on.client.send_stream.aclose()
        assert await receive_all(going_on.client) == JAM
        assert await receive_all(late.client) == b""
        await late.client.aclose()
    assert it.counters.disconnects[Disconnect.LINE_TIMEOUT] == 1


@pytest.mark.parametrize(("rest", "told"), [(b"", "timeout"), (b"ME\r\n", "JAM"), (b"M", "timeout")])
async def test_a_late_client_does_not_wait_behind_punctual_ones(
    mock_clock: MockClock, rest: bytes, told: str
) -> None:
    """A client with an overdue line gets its error at once, unless the rest of the line has come."""
    async with world(line_timeout=2.0) as it:
        mock_clock.jump(10.0)
        punctual, stream = it.serve(MemoryStream()), MemoryStream()
        await send(punctual, b"TI")
        client = Client(it.service, stream, since=trio.current_time() - 10.0)
        client.received, client.first_byte = b"TI", trio.current_time() - 3.0
        if rest:
            await stream.client.send_all(rest)
        it.counters.opened()
        it._clients.start_soon(it.handler.handle, client)
        await wait_all_tasks_blocked()
        assert (await stream.client.receive_some(100)).decode().removeprefix("ERROR ").startswith(told)
        await punctual.client.send_all(b"ME\r\n")
        for each in (stream, punctual):
            await each.client.send_stream.aclose()
    assert it.counters.requests == 2


async def test_pieces_of_a_line_do_not_extend_its_deadline(mock_clock: MockClock) -> None:
    """The first byte sets the deadline, even if other clients begin and end lines meanwhile."""
    async with world(line_timeout=2.0) as it:
        slow, honest = it.serve(MemoryStream()), it.serve(MemoryStream())
        for quarter in range(8):
            assert it.counters.rejected[Rejection.TIMEOUT] == 0
            if quarter:
                await send(honest, b"TI")
            await send(slow, b"x")
            await jump(mock_clock, 0.25)
            if quarter < 7:
                await send(honest, b"ME\r\n" if quarter else b"TIME\r\n")
        assert it.counters.rejected[Rejection.TIMEOUT] == 1
        await honest.client.send_all(b"ME\r\n")
        for each in (slow, honest):
            await each.client.send_stream.aclose()
    assert it.counters.responses == 8


async def test_a_client_that_takes_its_answers_at_the_deadline_is_served(mock_clock: MockClock) -> None:
    """A client that takes its answers at the moment of its deadline is served, and no byte is lost."""
    async with world(send_timeout=2.0, line_timeout=5.0) as it:
        stream = it.serve(MemoryStream(room=1))
        await send(stream, b"TIME\r\nTI")
        (client,) = it.handler._clients
        stream.room = 1000
        stream.look()
        client.release()  # in the same pass
        await wait_all_tasks_blocked()
        await send(stream, b"M")
        await stream.client.send_all(b"E\r\nQUIT\r\n")
        await stream.client.send_stream.aclose()
        assert await receive_all(stream.client) == JAM * 2


async def test_requests_that_a_drain_cuts_off_are_counted(mock_clock: MockClock) -> None:
    """Requests that were read and not answered at the end of the grace time are send errors."""
    async with world() as it:
        stream = it.serve(MemoryStream())
        await wait_all_tasks_blocked()
        it.handler.drain(trio.current_time() + 5.0)
        mock_clock.jump(1.0)
        stream._received = b"TIME\r\n" * 2000
        stream.look()
        while not it.counters.requests:
            await trio.lowlevel.checkpoint()
        it._clients.cancel_scope.cancel()
    assert it.counters.unaccounted == 0


async def test_a_released_client_whose_deadline_has_moved_is_kept(mock_clock: MockClock) -> None:
    """If a client is released, but its deadline is later when its task runs, the task waits again."""
    async with world() as it:
        stream = it.serve(MemoryStream())
        await wait_all_tasks_blocked()
        (client,) = it.handler._clients
        it.handler._deadlines.forget(client)
        client.release()
        await wait_all_tasks_blocked()
        assert it.counters.connections_open == 1
        await jump(mock_clock, 59.0)
        await stream.client.send_all(b"TIME\r\nQUIT\r\n")
        await stream.client.send_stream.aclose()
        assert await receive_all(stream.client) == JAM


async def test_a_reload_changes_the_deadline_of_an_unfinished_line(mock_clock: MockClock) -> None:
    """New timeouts apply to an unfinished line, too, longer ones and shorter ones."""
    async with world(line_timeout=2.0) as it:
        stream = it.serve(MemoryStream())
        await send(stream, b"TI")
        it.service.timeouts = type(it.service.timeouts)(line=20.0)
        it.handler.settings_changed()
        await jump(mock_clock, 10.0)
        await send(stream, b"ME\r\nTI")
        it.service.timeouts = type(it.service.timeouts)(line=1.0)
        it.handler.settings_changed()
        mock_clock.jump(1.0)
        received = await receive_all(stream.client)
        await stream.client.aclose()
    assert received == JAM + it.service.rules.error_line(Rejection.TIMEOUT)


async def test_overdue_clients_are_released_a_few_at_a_time(mock_clock: MockClock) -> None:
    """If many clients are overdue at once, a turn of the scheduler releases only a few of them."""
    crowd = 10 * RELEASED_AT_ONCE
    async with world(idle_timeout=5.0) as it:
        for _ in range(crowd):
            it.serve(MemoryStream())
        await wait_all_tasks_blocked()
        most, before = 0, crowd

        async def watch() -> None:
            nonlocal most, before
            while before:
                await trio.lowlevel.checkpoint()
                most = max(most, before - it.counters.connections_open)
                before = it.counters.connections_open

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            mock_clock.jump(5.0)
    assert 0 < most <= 2 * RELEASED_AT_ONCE  # two batches may lie between two looks


async def send(stream: MemoryStream, data: bytes) -> None:
    """Send, and wait until the server has read it."""
    await stream.client.send_all(data)
    await wait_all_tasks_blocked()


async def jump(clock: MockClock, seconds: float) -> None:
    """Move the clock, and wait until the server has seen it."""
    clock.jump(seconds)
    await wait_all_tasks_blocked()


async def receive_all_patiently(client: trio.abc.ReceiveStream) -> None:
    """Receive until the server closes, without a timeout."""
    async for _ in client:
        pass
