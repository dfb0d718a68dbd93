"""Finding an offset from the moments at which answers change: in virtual time, and against a real server."""

import random
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC
from functools import partial
from operator import add

import pytest
import trio
import trio.testing

from tests.helpers.bad_servers import JAM, says, silent, start_bad, tells
from triojam.client.precise import (
    BUDGET_REQUESTS,
    BUDGET_SECONDS,
    Bracket,
    Estimate,
    SteadyClock,
    ask_precisely,
    find_offset,
)
from triojam.client.session import Session, SilentError, StrangerError, WrongTimeError

# Virtual time starts in the middle of a day.
NOON = 1_700_049_600.0


class VirtualClock:
    """Trio's clock as this machine's, which a test can move by itself."""

    def now(self) -> float:
        """Return the time."""
        return NOON + trio.current_time()

    async def wait_until(self, moment: float) -> None:
        """Sleep; virtual time is exact."""
        await trio.sleep(max(0.0, moment - self.now()))


class Network(trio.abc.Stream):
    """A server behind a network: each way has delays, and no byte overtakes another, as over TCP.

    It needs no tasks, so that a hundred searches are fast. ahead: of the server's clock, at any moment.
    """

    def __init__(self, ahead: Callable[[float], float], delay: Callable[[], float]) -> None:
        self._ahead = ahead
        self._delay = delay
        self._arrived = self._answered = 0.0
        self._answers: deque[tuple[float, bytes]] = deque()
        self._sent = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Let the server answer as soon as the requests have arrived there."""
        await trio.lowlevel.checkpoint()
        self._arrived = max(self._arrived, trio.current_time() + self._delay())
        second = int(NOON + self._arrived + self._ahead(self._arrived))
        answer = JAM % (second // 3600 % 24, second // 60 % 60, second % 60)
        self._answered = max(self._answered, self._arrived + self._delay())
        self._answers.append((self._answered, answer * bytes(data).count(b"\n")))
        self._sent.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002  # the interface's
        """Wait for the next answer."""
        while not self._answers:
            self._sent = trio.Event()
            await self._sent.wait()
        await trio.sleep_until(self._answers[0][0])
        return self._answers.popleft()[1]

    async def wait_send_all_might_not_block(self) -> None:
        """Return: there is always room."""

    async def aclose(self) -> None:
        """Close."""


async def search(ahead: Callable[[float], float], delay: Callable[[], float]) -> tuple[Estimate, float]:
    """Look for the offset of a server whose clock is `ahead`, over a network with delays each way."""
    began = trio.current_time()
    session = Session(Network(ahead, delay), ("127.0.0.1", 0))
    found = await find_offset(session, VirtualClock(), zone=UTC)
    return found, trio.current_time() - began


NETWORKS: dict[str, Callable[[random.Random], Callable[[], float]]] = {
    "lan": lambda chance: lambda: chance.uniform(50e-6, 150e-6),
    "jittery": lambda chance: lambda: 0.002 + chance.expovariate(200),
    "lopsided": lambda chance: partial(next, iter(lambda: chance.choice((0.0005, 0.04)), None)),
    "far": lambda chance: lambda: 0.08 + chance.expovariate(100),
}


@pytest.mark.parametrize("network", NETWORKS)
async def test_the_truth_is_within_the_uncertainty(
    network: str, autojump_clock: trio.testing.MockClock
) -> None:
    """In a hundred runs, with offsets up to hours, the stated bound holds every time."""
    for seed in range(100):
        chance = random.Random(seed)
        ahead = chance.choice((0.0, chance.uniform(-1, 1), chance.uniform(-9, 9), chance.uniform(-4e4, 4e4)))
        found, took = await search(lambda _, ahead=ahead: ahead, NETWORKS[network](chance))  # type: ignore[misc]
        assert abs(found.offset - ahead) <= found.uncertainty
        assert found.requests <= BUDGET_REQUESTS
        assert took <= BUDGET_SECONDS
        if network == "lan":
            assert found.uncertainty < 0.001


async def test_clocks_that_run_apart(autojump_clock: trio.testing.MockClock) -> None:
    """A server clock that is 50 ppm fast or slow is found where it is at the end, within the bound."""
    for rate in (50e-6, -50e-6):
        found, _ = await search(lambda now, rate=rate: 0.3 + rate * now, lambda: 100e-6)  # type: ignore[misc]
        assert abs(found.offset - (0.3 + rate * trio.current_time())) <= found.uncertainty + 1e-6


async def test_a_clock_that_is_set_while_we_look(autojump_clock: trio.testing.MockClock) -> None:
    """Answers that fit no one clock are an error, and no estimate."""
    with pytest.raises(WrongTimeError, match="its answers fit no one clock"):
        await search(lambda now: 0.0 if now < 1.0 else 5.0, lambda: 100e-6)


async def test_a_real_connection(nursery: trio.Nursery) -> None:
    """Over a loopback socket, a clock that is ahead by a known amount is found within the budget."""
    address = await start_bad(nursery, tells(lambda: time.time() + 7.123))
    began = time.monotonic()
    answer = await ask_precisely(*address, zone=UTC)
    assert time.monotonic() - began < BUDGET_SECONDS + 1
    assert abs(answer.offset - 7.123) <= answer.bound < 0.1
    nursery.cancel_scope.cancel()


async def test_bad_servers(nursery: trio.Nursery) -> None:
    """A server that falls silent, and one that answers more than it was asked, are errors."""
    with pytest.raises(SilentError):
        await ask_precisely(*await start_bad(nursery, silent), patience=0.1)
    chatty = await start_bad(nursery, says(b"JAM 12:34:56\r\n" * 3))
    with pytest.raises(StrangerError, match="answers more often than it was asked"):
        await ask_precisely(*chatty, patience=0.1)
    nursery.cancel_scope.cancel()


def test_bracket_across_midnight() -> None:
    """Two answers on both sides of midnight narrow each other down."""
    bracket = Bracket()
    bracket.add(86_399, 86_398.5, 86_398.6)  # the offset is between 0.4 and 1.5
    bracket.add(0, 86_399.3, 86_399.4)  # and now between 0.6 and 1.7
    assert [bracket.low, bracket.high] == pytest.approx([0.6, 1.5], abs=1e-3)
    assert list(bracket.next_flip(86_400.0)) == pytest.approx([86_400.5, 86_401.4], abs=1e-3)


async def test_steady_clock() -> None:
    """It carries the wall clock on by the monotonic one, and does not wait too short."""
    clock = SteadyClock()
    assert abs(clock.now() - time.time()) < 1
    due = clock.now() + 0.01
    await clock.wait_until(due)
    assert clock.now() >= due
    stopped = SteadyClock(partial(add, 1000.0, 0.5), partial(add, 1.0, 1.0))
    assert stopped.now() == 1000.5


async def test_a_slow_server_does_not_make_it_slow(autojump_clock: trio.testing.MockClock) -> None:
    """When answers take long, what is known after the budget of time is told, and is true."""
    near, server = trio.testing.memory_stream_pair()

    async def slow(stream: trio.abc.Stream) -> None:
        async for data in stream:
            for _ in range(data.count(b"\n")):
                await trio.sleep(0.4)
                second = int(NOON + trio.current_time() + 2.5)
                text = f"JAM {second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}\r\n"
                await stream.send_all(text.encode())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow, server)
        began = trio.current_time()
        found = await find_offset(Session(near, ("127.0.0.1", 0)), VirtualClock(), zone=UTC)
        assert trio.current_time() - began <= BUDGET_SECONDS
        assert abs(found.offset - 2.5) <= found.uncertainty
        nursery.cancel_scope.cancel()
