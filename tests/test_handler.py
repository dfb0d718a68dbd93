"""The handler alone, on streams that can do less than a socket, and on a clock that jumps."""

import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair

from tests.support import JAM, Events, balanced, receive_all
from triojam.admission import Admission, Policy
from triojam.counters import Counters
from triojam.handler import Handler
from triojam.protocol import Rules, Timeouts
from triojam.reasons import Disconnect, SendError


class PlainStream(trio.abc.Stream):
    """A stream that cannot close in one direction, as a TLS stream cannot."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait."""
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive."""
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close."""
        await self.inner.aclose()


class FailingStream(PlainStream):
    """A stream whose send fails in a way that nobody foresaw."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Fail."""
        raise RuntimeError(len(data))


def make_handler(counters: Counters, **timeouts: float) -> Handler:
    """Make a handler whose answers are all the same."""
    return Handler(
        rules=Rules(),
        timeouts=Timeouts(**timeouts),
        counters=counters,
        admission=Admission(Policy()),
        jam=lambda: JAM,
        log=Events().make_logger("info"),
    )


async def serve(handler: Handler, counters: Counters, stream: trio.abc.Stream) -> None:
    """Serve one stream, as a listener would have it served."""
    counters.opened()
    await handler.handle(stream)


async def test_a_stream_that_cannot_half_close(autojump_clock: MockClock) -> None:
    """Whoever cannot end one direction alone is closed whole, after the last answer."""
    counters = Counters()
    client, server = memory_stream_pair()
    await client.send_all(b"TIME\r\nQUIT\r\n")
    await serve(make_handler(counters), counters, PlainStream(server))
    assert await receive_all(client) == JAM
    assert counters.disconnects[Disconnect.QUIT] == 1
    await balanced(counters)


async def test_answers_that_are_not_taken(autojump_clock: MockClock) -> None:
    """A stream that cannot tell what it took of a failed send has taken none of it."""
    counters = Counters()
    client, server = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, make_handler(counters, send=3.0), counters, server)
        began = trio.current_time()
        await client.send_all(b"TIME\r\n" * 3)
    assert trio.current_time() - began == 3.0
    assert counters.send_errors[SendError.TIMEOUT] == 3
    assert counters.disconnects[Disconnect.SEND_TIMEOUT] == 1
    await balanced(counters)


async def test_an_exception_while_times_are_due(autojump_clock: MockClock) -> None:
    """When a send fails in a way nobody foresaw, the times that were due are accounted for, too."""
    counters = Counters()
    client, server = memory_stream_pair()
    await client.send_all(b"TIME\r\nTIME\r\nx\r\n")
    await serve(make_handler(counters), counters, FailingStream(server))
    assert counters.send_errors[SendError.RESET] == 2
    assert counters.internal_errors == 1
    assert counters.disconnects[Disconnect.INTERNAL_ERROR] == 1
    await balanced(counters)


async def test_cancelled_while_times_are_due(autojump_clock: MockClock) -> None:
    """When serving is cancelled in the middle of a send, the times that were due are send errors."""
    counters = Counters()
    client, server = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, make_handler(counters), counters, server)
        await client.send_all(b"TIME\r\nTI")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert counters.send_errors[SendError.SHUTDOWN] == 1
    assert counters.disconnects[Disconnect.DRAIN] == 1
    await balanced(counters)


async def test_deadlines_to_the_tick(autojump_clock: MockClock) -> None:
    """The deadlines are absolute and exact: ten seconds from the first byte, sixty without one."""
    for sent, seconds, reason in (
        (b"", 60.0, Disconnect.IDLE),
        (b"TIME\r\n", 60.0, Disconnect.IDLE),
        (b"TIME\r\nTI", 10.0, Disconnect.LINE_TIMEOUT),
    ):
        counters = Counters()
        client, server = memory_stream_pair()
        await client.send_all(sent)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, make_handler(counters), counters, server)
            await receive_all_patiently(client)
            assert trio.current_time() - began == seconds
        assert counters.disconnects[reason] == 1
        await balanced(counters)


async def receive_all_patiently(client: trio.abc.ReceiveStream) -> None:
    """Receive until the server closes, however long that takes on the clock."""
    async for _ in client:
        pass
