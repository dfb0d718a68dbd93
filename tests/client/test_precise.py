"""The precise offset, from the moments at which answers change: in virtual time, and over TCP."""

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

from tests.helpers.bad_servers import JAM, Behaviour, says, silent, start_bad, tells
from triojam.client.ask import AskOptions
from triojam.client.precise import BUDGET_REQUESTS, BUDGET_SECONDS, Bracket, SteadyClock, find_offset
from triojam.client.session import (
    Answer,
    AskError,
    Session,
    SilentError,
    StrangerError,
    Target,
    WrongTimeError,
)

# Virtual time starts in the middle of a day.
NOON = 1_700_049_600.0


class VirtualClock:
    """Trio's clock as this machine's clock; a test's autojump clock moves it."""

    def now(self) -> float:
        """Return the time."""
        return NOON + trio.current_time()

    async def wait_until(self, moment: float) -> None:
        """Sleep; virtual time is exact."""
        await trio.sleep(max(0.0, moment - self.now()))


class Network(trio.abc.Stream):
    """A server behind a network: each way has delays, and no byte overtakes another, as over TCP.

    It needs no tasks, so a hundred searches are fast. ahead: returns how far the server's clock is ahead at a
    time. delay: returns the next delay of one way.
    """

    def __init__(self, ahead: Callable[[float], float], delay: Callable[[], float]) -> None:
        self._ahead = ahead
        self._delay = delay
        self._arrived = self._answered = 0.0
        self._answers: deque[tuple[float, bytes]] = deque()
        self._sent = trio.Event()
        self.requests = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Let the server answer as soon as the requests have arrived there."""
        await trio.lowlevel.checkpoint()
        self._arrived = max(self._arrived, trio.current_time() + self._delay())
        second = int(NOON + self._arrived + self._ahead(self._arrived))
        answer = JAM % (second // 3600 % 24, second // 60 % 60, second % 60)
        self._answered = max(self._answered, self._arrived + self._delay())
        requests = bytes(data).count(b"\n")
        self.requests += requests
        self._answers.append((self._answered, answer * requests))
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


async def search(stream: trio.abc.Stream) -> Answer:
    """Find the offset of a server in virtual time, within the budget."""
    began = trio.current_time()
    found = await find_offset(Session(stream, ("127.0.0.1", 0)), VirtualClock(), zone=UTC)
    assert trio.current_time() - began <= BUDGET_SECONDS
    return found


def _always(ahead: float) -> Callable[[float], float]:
    return lambda _moment: ahead


NETWORKS: dict[str, Callable[[random.Random], Callable[[], float]]] = {
    "lan": lambda chance: lambda: chance.uniform(50e-6, 150e-6),
    "jittery": lambda chance: lambda: 0.002 + chance.expovariate(200),
    "lopsided": lambda chance: partial(next, iter(lambda: chance.choice((0.0005, 0.04)), None)),
    "far": lambda chance: lambda: 0.08 + chance.expovariate(100),
}


@pytest.mark.parametrize("network", NETWORKS)
async def test_the_true_offset_is_within_the_bound(
    network: str, autojump_clock: trio.testing.MockClock
) -> None:
    """In a hundred runs, with offsets of up to hours, the bound holds and the budget is kept."""
    for seed in range(100):
        chance = random.Random(seed)
        ahead = chance.choice((0.0, chance.uniform(-1, 1), chance.uniform(-9, 9), chance.uniform(-4e4, 4e4)))
        stream = Network(_always(ahead), NETWORKS[network](chance))
        found = await search(stream)
        assert abs(found.offset - ahead) <= found.bound
        assert stream.requests <= BUDGET_REQUESTS
        if network == "lan":
            assert found.bound < 0.001


@pytest.mark.parametrize("rate", [50e-6, -50e-6])
async def test_the_offset_of_a_drifting_clock_is_found(
    rate: float, autojump_clock: trio.testing.MockClock
) -> None:
    """For a server clock that is 50 ppm fast or slow, the bound holds at the end."""
    found = await search(Network(lambda moment: 0.3 + rate * moment, lambda: 100e-6))
    assert abs(found.offset - (0.3 + rate * trio.current_time())) <= found.bound + 1e-6


async def test_a_clock_step_is_an_error(autojump_clock: trio.testing.MockClock) -> None:
    """Answers that do not fit one clock give an error, and no offset."""
    with pytest.raises(WrongTimeError, match="its answers fit no one clock"):
        await search(Network(lambda moment: 0.0 if moment < 1.0 else 5.0, lambda: 100e-6))


async def test_a_slow_server_does_not_exceed_the_budget(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """When answers take long, the result at the end of the budget is still right."""
    near, server = trio.testing.memory_stream_pair()

    async def slow() -> None:
        async for data in server:
            for _ in range(data.count(b"\n")):
                await trio.sleep(0.4)
                second = int(NOON + trio.current_time() + 2.5)
                await server.send_all(JAM % (second // 3600 % 24, second // 60 % 60, second % 60))

    nursery.start_soon(slow)
    found = await search(near)
    assert abs(found.offset - 2.5) <= found.bound


async def ask_precisely(address: tuple[str, int], patience: float = 5.0) -> Answer:
    """Ask as `triojam ask --precise` does."""
    outcome = await AskOptions(precise=True, patience=patience, zone=UTC).ask(Target(*address))
    if isinstance(outcome, AskError):
        raise outcome
    return outcome


async def test_the_offset_is_found_over_tcp(nursery: trio.Nursery) -> None:
    """A known offset is found over loopback within the budget."""
    address = await start_bad(nursery, tells(lambda: time.time() + 7.123))
    began = time.monotonic()
    answer = await ask_precisely(address)
    assert time.monotonic() - began < BUDGET_SECONDS + 1
    assert abs(answer.offset - 7.123) <= answer.bound < 0.1


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        (silent, SilentError, "said nothing for 0.1 s without an answer"),
        (says(b"JAM 12:34:56\r\n" * 3), StrangerError, "answers more often than it was asked"),
    ],
)
async def test_a_bad_server_is_an_error(
    nursery: trio.Nursery, behaviour: Behaviour, kind: type[AskError], words: str
) -> None:
    """A server that sends nothing, or more answers than requests, gives an error."""
    with pytest.raises(kind, match=words):
        await ask_precisely(await start_bad(nursery, behaviour), patience=0.1)


def test_a_bracket_crosses_midnight() -> None:
    """Answers before and after midnight narrow the same range."""
    bracket = Bracket()
    bracket.add(86_399, 86_398.5, 86_398.6)  # the offset is between 0.4 and 1.5
    bracket.add(0, 86_399.3, 86_399.4)  # and now between 0.6 and 1.7
    assert [bracket.low, bracket.high] == pytest.approx([0.6, 1.5], abs=1e-3)
    assert list(bracket.next_change(86_400.0)) == pytest.approx([86_400.5, 86_401.4], abs=1e-3)


async def test_the_steady_clock_follows_the_monotonic_clock() -> None:
    """It starts at the wall clock's time, continues with the monotonic clock, and never waits too short."""
    clock = SteadyClock()
    assert abs(clock.now() - time.time()) < 1
    due = clock.now() + 0.01
    await clock.wait_until(due)
    assert clock.now() >= due
    stopped = SteadyClock(partial(add, 1000.0, 0.5), partial(add, 1.0, 1.0))
    assert stopped.now() == 1000.5
