"""Bad servers: each breaks the protocol in its own way, and a client must cope with it."""

import itertools
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tests.helpers.sockets import RESET_ON_CLOSE

JAM = b"JAM %02d:%02d:%02d\r\n"

Behaviour = Callable[[trio.abc.Stream], Awaitable[None]]


async def start_bad(nursery: trio.Nursery, behaviour: Behaviour) -> tuple[str, int]:
    """Start a server with this behaviour on a free loopback port, and return its address."""

    async def contained(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await behaviour(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has closed

    (listener,) = await nursery.start(partial(trio.serve_tcp, contained, 0, host="127.0.0.1"))
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
    """Make the kernel reset the connection when it is closed."""
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def says(answer: bytes, *, then_closes: bool = False) -> Behaviour:
    """Make a server that sends the same answer after each read."""

    async def behave(stream: trio.abc.Stream) -> None:
        async for _ in stream:
            await stream.send_all(answer)
            if then_closes:
                return

    return behave


def tells(now: Callable[[], float], *, resets_every: int = 0) -> Behaviour:
    """Make a server that tells the time of this clock in UTC. resets_every: a number of answers."""
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
