"""Time servers with faults, to test clients against: each breaks the protocol in one way."""

import itertools
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tests.helpers.sockets import reset_on_close

JAM = b"JAM %02d:%02d:%02d\r\n"

Behaviour = Callable[[trio.abc.Stream], Awaitable[None]]


async def start_bad(nursery: trio.Nursery, behaviour: Behaviour) -> tuple[str, int]:
    """Start a server with this behaviour on a free loopback port, and return its address."""

    async def handle(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await behaviour(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has closed the connection

    (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
    host, port = listener.socket.getsockname()
    return host, port


async def silent(stream: trio.abc.Stream) -> None:
    """Read, and send nothing."""
    async for _ in stream:
        pass


async def closes_at_once(stream: trio.abc.Stream) -> None:
    """Close without a reply."""


async def resets_at_once(stream: trio.abc.Stream) -> None:
    """Reset without a reply."""
    reset(stream)


def reset(stream: trio.abc.Stream) -> None:
    """Make the close of a stream reset its connection."""
    assert isinstance(stream, trio.SocketStream)
    reset_on_close(stream)


def says(answer: bytes, *, then_closes: bool = False) -> Behaviour:
    """Make a server that sends the same answer after each read."""

    async def behave(stream: trio.abc.Stream) -> None:
        async for _ in stream:
            await stream.send_all(answer)
            if then_closes:
                return

    return behave


def tells(now: Callable[[], float], *, resets_every: int = 0) -> Behaviour:
    """Make a server that tells the time of this clock, in UTC; it resets in place of every Nth answer."""
    count = itertools.count(1)

    async def behave(stream: trio.abc.Stream) -> None:
        async for data in stream:
            answers = b""
            for _ in range(data.count(b"\n")):
                if resets_every and next(count) % resets_every == 0:
                    reset(stream)
                    return
                second = int(now())
                answers += JAM % (second // 3600 % 24, second // 60 % 60, second % 60)
            await stream.send_all(answers)

    return behave
