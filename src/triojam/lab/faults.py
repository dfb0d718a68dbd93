"""What can go wrong with a time server, done to one on purpose.

Each fault runs until it is cancelled, and then leaves nothing behind. The first line of its docstring is
what the lab says about it.
"""

import random
import signal
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf

import trio

from triojam.client.time_of_day import DAY, second_of_day
from triojam.load.checker import ServerClock
from triojam.load.generator import LoadGenerator
from triojam.load.plan import Plan

SLOW_CLIENTS = 40
GARBAGE_CLIENTS = 10
RESETTING_CLIENTS = 10
# From the end of a client's visit to its next: some hundred visits a second are plenty to look at.
BETWEEN_VISITS = 0.1
# Long enough for all the answers to a piece of garbage.
GARBAGE_PATIENCE = 1.0
# So that a flood is about connections and requests, and leaves some of the machine to who watches it.
FLOOD_THINK_TIME = 0.02
WRONG_BY = 90.0
STUTTER_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server, and what can be done to it.

    limit: how many connections it takes. line_timeout: how long a line may take, in seconds.
    seconds: how long a fault lasts. set_clock: makes its clock so many seconds
    fast. send_signal: to its process.
    """

    address: tuple[str, int]
    limit: int
    line_timeout: float
    seconds: float
    set_clock: Callable[[float], Awaitable[None]]
    send_signal: Callable[[int], None]
    chance: random.Random


async def slow_clients(target: Target) -> None:
    """40 clients send half a line and wait; every other one ends it after all."""

    async def never_ends(stream: trio.SocketStream) -> None:
        await stream.send_all(b"TI")
        await _read(stream)

    async def ends_late(stream: trio.SocketStream) -> None:
        await stream.send_all(b"TI")
        await trio.sleep(target.line_timeout * target.chance.uniform(0.1, 0.8))
        await stream.send_all(b"ME\r\nQUIT\r\n")
        await _read(stream)

    async with trio.open_nursery() as nursery:
        for visit in (never_ends, ends_late):
            for _ in range(SLOW_CLIENTS // 2):
                nursery.start_soon(_visit, target, visit)


async def garbage(target: Target) -> None:
    """10 clients send random bytes."""

    async def babble(stream: trio.SocketStream) -> None:
        lines = [target.chance.randbytes(target.chance.randint(1, 60)) for _ in range(20)]
        await stream.send_all(b"\r\n".join([*lines, b""]))
        with trio.move_on_after(GARBAGE_PATIENCE):
            await _read(stream)

    async with trio.open_nursery() as nursery:
        for _ in range(GARBAGE_CLIENTS):
            nursery.start_soon(_visit, target, babble)


async def resets(target: Target) -> None:
    """10 clients connect, ask and reset the connection, again and again."""

    async def ask_and_reset(stream: trio.SocketStream) -> None:
        await stream.send_all(b"TIME\r\n")
        await stream.receive_some()  # so that it is not reset before it is accepted
        await stream.send_all(b"TIME\r\n" * 10)
        stream.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # to close is to reset

    async with trio.open_nursery() as nursery:
        for _ in range(RESETTING_CLIENTS):
            nursery.start_soon(_visit, target, ask_and_reset)


async def flood(target: Target) -> None:
    """More clients than it has room for ask as fast as they can."""
    await run_load(
        target.address,
        Plan(connections=target.limit + target.limit // 10, seconds=inf, think_time=FLOOD_THINK_TIME),
        target.chance,
    )


async def clock(target: Target) -> None:
    """The server's clock steps forward by 90 seconds, and back at the end."""
    await target.set_clock(WRONG_BY)
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
            await target.set_clock(0.0)


async def pause(target: Target) -> None:
    """The server's process stands still for half of the time, and then stutters."""
    try:
        target.send_signal(signal.SIGSTOP)
        await trio.sleep(target.seconds / 2)
        while True:
            target.send_signal(signal.SIGCONT)
            await trio.sleep(STUTTER_SECONDS)
            target.send_signal(signal.SIGSTOP)
            await trio.sleep(STUTTER_SECONDS)
    finally:
        target.send_signal(signal.SIGCONT)


FAULTS: dict[str, Callable[[Target], Awaitable[None]]] = {
    "slow-clients": slow_clients,
    "garbage": garbage,
    "resets": resets,
    "flood": flood,
    "clock": clock,
    "pause": pause,
}


async def run_load(address: tuple[str, int], plan: Plan, chance: random.Random) -> None:
    """Send a load to a server on this machine, and send it again should the load give up."""
    ahead = second_of_day(time.time(), None) - time.perf_counter()
    while True:
        await LoadGenerator(plan, address, ServerClock(lambda now: (now + ahead) % DAY), chance=chance).run()
        await trio.sleep(BETWEEN_VISITS)


async def _visit(target: Target, visit: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
    """Connect, do something, close, again and again."""
    while True:
        try:
            async with await trio.open_tcp_stream(*target.address) as stream:
                await visit(stream)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it was refused, or reset by either side: what this is about
        await trio.sleep(BETWEEN_VISITS)


async def _read(stream: trio.SocketStream) -> None:
    """Read to the end."""
    async for _ in stream:
        pass
