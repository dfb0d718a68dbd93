"""The portable listener."""

import errno
import os

import pytest
import trio
from trio import socket as tsocket
from trio.testing import MockClock

from triojam.admission import Admission, Policy
from triojam.counters import Counters
from triojam.listeners import ClientListener
from triojam.reasons import AcceptError
from triojam.streams import format_address


class FailingSocket(tsocket.SocketType):
    """A listening socket whose accept fails in a given order, and then waits for ever."""

    def __init__(self, errors: list[int]) -> None:
        self.errors = errors
        self.closed = False

    async def accept(self) -> tuple[tsocket.SocketType, object]:
        """Fail with the next error."""
        await trio.lowlevel.checkpoint()
        if not self.errors:
            await trio.sleep_forever()
        code = self.errors.pop(0)
        raise OSError(code, os.strerror(code))

    def fileno(self) -> int:
        """Return a number that stands for an open socket."""
        return 3


async def test_accept_errors_are_counted_and_survived(autojump_clock: MockClock) -> None:
    """Every failed accept is counted by errno; those that do not pass by themselves pause accepting."""
    counters = Counters()
    errors = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE, errno.ENOBUFS, errno.EMFILE]
    listener = ClientListener(FailingSocket(errors), counters=counters, admission=Admission(Policy()))
    began = trio.current_time()
    with trio.move_on_after(0.95):
        await listener.accept()
    assert not errors
    assert counters.accept_errors == {
        AcceptError.EMFILE: 2,
        AcceptError.ENFILE: 1,
        AcceptError.ECONNABORTED: 1,
        AcceptError.OTHER: 1,
    }
    assert trio.current_time() - began < 1.0


async def test_closing_ends_accept() -> None:
    """Closing the listener ends a waiting accept with ClosedResourceError."""
    (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = ClientListener(plain.socket, counters=Counters(), admission=Admission(Policy()))

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
    (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = ClientListener(plain.socket, counters=Counters(), admission=Admission(Policy()))
    listener._counters.connections_limit = 1
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
