"""The handler alone, on streams in memory, and on a clock that jumps."""

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
    """A stream whose send fails in a way that nobody foresaw."""

    def send_now(self, data: bytes) -> bool:
        """Fail."""
        raise RuntimeError(len(data))


class World:
    """A handler whose answers are all the same, and the nursery of its clients."""

    def __init__(self, service: Service, clients: trio.Nursery) -> None:
        self.service = service
        self.counters = service.counters
        self.handler = Handler(service)
        self._clients = clients

    def serve(self, stream: MemoryStream) -> MemoryStream:
        """Serve one stream, as a listener would have it served."""
        self.counters.opened()
        client = Client(self.service, stream, since=trio.current_time())
        self._clients.start_soon(self.handler.handle, client)
        return stream


@asynccontextmanager
async def world(**settings: float) -> AsyncIterator[World]:
    """Keep a handler and its time; in the end all clients must have ended, and the accounts balance."""
    service = make_service(settings_for_test(max_connections=10_000, **settings))
    async with trio.open_nursery() as beside:
        async with trio.open_nursery() as clients:
            it = World(service, clients)
            beside.start_soon(it.handler.keep_time)
            yield it
        beside.cancel_scope.cancel()
    await balanced(service.counters)


async def test_answers_that_are_not_taken(autojump_clock: MockClock) -> None:
    """A client that takes nothing is cut off at the send timeout, and what was due is a send error."""
    async with world(send_timeout=3.0) as it:
        began = trio.current_time()
        stream = it.serve(MemoryStream(room=len(JAM) + 1))
        await stream.client.send_all(b"TIME\r\n" * 3)
        await receive_all_patiently(stream.client)
        assert trio.current_time() - began == 3.0
    assert it.counters.responses == 1
    assert it.counters.send_errors[SendError.TIMEOUT] == 2
    assert it.counters.disconnects[Disconnect.SEND_TIMEOUT] == 1


async def test_an_exception_while_times_are_due(autojump_clock: MockClock) -> None:
    """When a send fails in a way nobody foresaw, the times that were due are accounted for, too."""
    async with world() as it:
        stream = it.serve(FailingStream())
        await stream.client.send_all(b"TIME\r\nTIME\r\nx\r\n")
    assert it.counters.send_errors[SendError.RESET] == 2
    assert it.counters.internal_errors == 1
    assert it.counters.disconnects[Disconnect.INTERNAL_ERROR] == 1


@pytest.mark.parametrize("sent", [b"TIME\r\n", b"TIME\r\nTIME please\r\n"])
async def test_an_exception_while_the_time_is_rendered(autojump_clock: MockClock, sent: bytes) -> None:
    """A clock that fails leaves no request unaccounted for, on the short way neither."""

    def explode() -> bytes:
        raise RuntimeError

    async with world() as it:
        it.service.jam = explode
        stream = it.serve(MemoryStream())
        await stream.client.send_all(sent)
    assert it.counters.internal_errors == 1


async def test_cancelled_while_times_are_due(autojump_clock: MockClock) -> None:
    """When serving is cancelled in the middle of a send, the times that were due are send errors."""
    async with world() as it:
        stream = it.serve(MemoryStream(room=0))
        await stream.client.send_all(b"TIME\r\nTI")
        await wait_all_tasks_blocked()
        it._clients.cancel_scope.cancel()
    assert it.counters.send_errors[SendError.SHUTDOWN] == 1
    assert it.counters.rejected[Rejection.DRAINING] == 1
    assert it.counters.disconnects[Disconnect.DRAIN] == 1


async def test_deadlines_to_the_tick(autojump_clock: MockClock) -> None:
    """The deadlines are absolute and exact: ten seconds from the first byte, sixty without one."""
    for sent, seconds, reason in (
        (b"", 60.0, Disconnect.IDLE),
        (b"TIME\r\n", 60.0, Disconnect.IDLE),
        (b"TIME\r\nTI", 10.0, Disconnect.LINE_TIMEOUT),
    ):
        async with world() as it:
            stream = it.serve(MemoryStream())
            if sent:
                await stream.client.send_all(sent)
            began = trio.current_time()
            await receive_all_patiently(stream.client)
            assert trio.current_time() - began == seconds
            await stream.client.aclose()
        assert it.counters.disconnects[reason] == 1


async def test_no_time_runs_while_the_server_does_not_read(mock_clock: MockClock) -> None:
    """A line that began before the client stopped reading has its whole time once it reads again."""
    async with world(line_timeout=2.0, send_timeout=10.0) as it:
        stream = it.serve(MemoryStream(room=len(JAM)))
        await stream.client.send_all(b"TIME\r\nTIME\r\nTI")
        await wait_all_tasks_blocked()
        mock_clock.jump(5.0)
        await wait_all_tasks_blocked()
        stream.room = 1000
        stream.look()
        await wait_all_tasks_blocked()
        mock_clock.jump(1.5)
        await wait_all_tasks_blocked()
        await stream.client.send_all(b"ME\r\nQUIT\r\n")
        await stream.client.send_stream.aclose()
        assert await receive_all(stream.client) == JAM * 3
    assert it.counters.rejected[Rejection.TIMEOUT] == 0


async def test_a_standstill_costs_nobody_the_answer(mock_clock: MockClock) -> None:
    """What has come by the time that the server looks again is answered, however late that is."""
    async with world() as it:
        idle, midline, silent = [it.serve(MemoryStream()) for _ in range(3)]
        await midline.client.send_all(b"TI")
        await wait_all_tasks_blocked()
        # Bytes that arrive while nothing runs: the deadlines pass before anyone could look.
        idle._received, midline._received = b"TIME\r\n", b"ME\r\n"
        mock_clock.jump(3600.0)
        await wait_all_tasks_blocked()
        for stream in (idle, midline):
            await stream.client.send_stream.aclose()
            assert await receive_all(stream.client) == JAM
        assert await receive_all(silent.client) == b""
    assert it.counters.disconnects[Disconnect.IDLE] == 1
    assert it.counters.disconnects[Disconnect.EOF] == 2


class SecuredMemoryStream(MemoryStream, SecuredStream):
    """A stream with a handshake, which a test ends."""

    secured = True

    def __init__(self) -> None:
        super().__init__()
        self.arrived = False
        self.shaken = trio.Event()

    async def begin(self) -> None:
        """Shake hands."""
        await self.shaken.wait()

    def may_go_on(self) -> bool:
        """Return what the test says."""
        return self.arrived


async def test_a_standstill_in_a_handshake(mock_clock: MockClock) -> None:
    """A handshake for which something came while the server stood still goes on; another has timed out."""
    async with world(line_timeout=2.0) as it:
        going_on, late = it.serve(SecuredMemoryStream()), it.serve(SecuredMemoryStream())
        assert isinstance(going_on, SecuredMemoryStream)
        going_on.arrived = True
        await wait_all_tasks_blocked()
        mock_clock.jump(3600.0)
        await wait_all_tasks_blocked()
        going_on.shaken.set()
        await going_on.client.send_all(b"TIME\r\n")
        await going_on.client.send_stream.aclose()
        assert await receive_all(going_on.client) == JAM
        assert await receive_all(late.client) == b""
        await late.client.aclose()
    assert it.counters.disconnects[Disconnect.LINE_TIMEOUT] == 1


@pytest.mark.parametrize(("rest", "told"), [(b"", "timeout"), (b"ME\r\n", "JAM"), (b"M", "timeout")])
async def test_a_late_client_does_not_queue_behind_punctual_ones(
    mock_clock: MockClock, rest: bytes, told: str
) -> None:
    """A client that is handed over since its line is late is told at once, unless the rest of it has come."""
    async with world(line_timeout=2.0) as it:
        mock_clock.jump(10.0)
        punctual, stream = it.serve(MemoryStream()), MemoryStream()
        await punctual.client.send_all(b"TI")
        await wait_all_tasks_blocked()
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


async def test_pieces_of_a_line_do_not_extend_its_time_whatever_others_do(mock_clock: MockClock) -> None:
    """Its deadline is its first byte's, also when others begin and end lines meanwhile."""
    async with world(line_timeout=2.0) as it:
        slow, honest = it.serve(MemoryStream()), it.serve(MemoryStream())
        for quarter in range(8):
            assert it.counters.rejected[Rejection.TIMEOUT] == 0
            if quarter:
                await honest.client.send_all(b"TI")
                await wait_all_tasks_blocked()
            await slow.client.send_all(b"x")
            await wait_all_tasks_blocked()
            mock_clock.jump(0.25)
            await wait_all_tasks_blocked()
            if quarter < 7:
                await honest.client.send_all(b"ME\r\n" if quarter else b"TIME\r\n")
                await wait_all_tasks_blocked()
        assert it.counters.rejected[Rejection.TIMEOUT] == 1
        await honest.client.send_all(b"ME\r\n")
        for each in (slow, honest):
            await each.client.send_stream.aclose()
    assert it.counters.responses == 8


async def test_no_byte_is_lost_when_answers_are_taken_at_the_last_moment(mock_clock: MockClock) -> None:
    """A client that takes its answers just as it is given up is served on, to the byte."""
    async with world(send_timeout=2.0, line_timeout=5.0) as it:
        stream = it.serve(MemoryStream(room=1))
        await stream.client.send_all(b"TIME\r\nTI")
        await wait_all_tasks_blocked()
        (client,) = it.handler._clients
        stream.room = 1000
        stream.look()
        client.release()  # in the same pass
        await wait_all_tasks_blocked()
        await stream.client.send_all(b"M")
        await wait_all_tasks_blocked()
        await stream.client.send_all(b"E\r\nQUIT\r\n")
        await stream.client.send_stream.aclose()
        assert await receive_all(stream.client) == JAM * 2


async def test_what_a_drain_cuts_off_is_accounted_for(mock_clock: MockClock) -> None:
    """A request that was read and not answered when the grace time ended is a send error, not a gap."""
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


async def test_time_that_was_given_after_all(mock_clock: MockClock) -> None:
    """A client that is released, and has more time by the moment its task runs, is waited for again."""
    async with world() as it:
        stream = it.serve(MemoryStream())
        await wait_all_tasks_blocked()
        (client,) = it.handler._clients
        it.handler._deadlines.forget(client)
        client.release()
        await wait_all_tasks_blocked()
        assert it.counters.connections_open == 1
        mock_clock.jump(59.0)
        await wait_all_tasks_blocked()
        await stream.client.send_all(b"TIME\r\nQUIT\r\n")
        await stream.client.send_stream.aclose()
        assert await receive_all(stream.client) == JAM


async def test_a_reload_in_the_middle_of_a_line(mock_clock: MockClock) -> None:
    """New timeouts are for the line that a client is in the middle of, too, whichever way they change."""
    async with world(line_timeout=2.0) as it:
        stream = it.serve(MemoryStream())
        await stream.client.send_all(b"TI")
        await wait_all_tasks_blocked()
        it.service.timeouts = type(it.service.timeouts)(line=20.0)
        it.handler.settings_changed()
        mock_clock.jump(10.0)
        await wait_all_tasks_blocked()
        await stream.client.send_all(b"ME\r\nTI")
        await wait_all_tasks_blocked()
        it.service.timeouts = type(it.service.timeouts)(line=1.0)
        it.handler.settings_changed()
        mock_clock.jump(1.0)
        received = await receive_all(stream.client)
        await stream.client.aclose()
    assert received == JAM + it.service.rules.error_line(Rejection.TIMEOUT)


async def test_the_overdue_are_released_a_few_at_a_time(mock_clock: MockClock) -> None:
    """However many are late at once, a turn of the scheduler ends few of them."""
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


async def receive_all_patiently(client: trio.abc.ReceiveStream) -> None:
    """Receive until the server closes, however long that takes on the clock."""
    async for _ in client:
        pass
