"""The precise offset, from the moments at which answers change: in virtual time, and over TCP."""

import random
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC
from functools import partial
from itertools import product
from math import inf
from operator import add

import pytest
import trio
import trio.testing

from tests.helpers.bad_servers import JAM, Behaviour, says, silent, start_bad, tells
from triojam.client.ask import AskOptions, ask
from triojam.client.precise import (
    BUDGET_REQUESTS,
    BUDGET_SECONDS,
    SLOW_SECONDS,
    Bracket,
    SteadyClock,
    find_offset,
)
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

LIMITED = b"ERROR rate_limited: later\r\n"
ERROR_BUDGET = 10


class VirtualClock:
    """Trio's clock as this machine's clock; a test's autojump clock moves it."""

    def __init__(self, step: float = 0.0) -> None:
        self._step = step

    def now(self) -> float:
        """Return the time."""
        return NOON + trio.current_time()

    def step(self) -> float:
        """Return by how much this machine's clock was set meanwhile."""
        return self._step

    async def wait_until(self, moment: float) -> None:
        """Sleep; virtual time is exact."""
        await trio.sleep(max(0.0, moment - self.now()))


class Network(trio.abc.Stream):
    """A server behind a network: each way has delays, and no byte overtakes another, as over TCP.

    It needs no tasks, so a hundred searches are fast. ahead: returns how far the server's clock is ahead at a
    time. delay: returns the next delay of one way. limit: answers a second, and at once, as with
    `rate_per_source` and `burst_per_source`; the tenth rejected line in a row closes the connection.
    """

    def __init__(
        self,
        ahead: Callable[[float], float],
        delay: Callable[[], float],
        limit: tuple[float, float] = (inf, inf),
    ) -> None:
        self._ahead = ahead
        self._delay = delay
        self._rate, self._burst = limit
        self._tokens = self._burst
        self._filled = self._rejected = 0.0
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
        assert bytes(data).count(b"\n") == 1
        self.requests += 1
        if self._rejected < ERROR_BUDGET:
            self._answers.append((self._answered, answer if self._permits() else LIMITED))
        if self._rejected == ERROR_BUDGET:
            self._answers.append((self._answered, b""))
        self._sent.set()

    def _permits(self) -> bool:
        if self._rate < inf:
            self._tokens = min(self._burst, self._tokens + self._rate * (self._arrived - self._filled))
        self._filled = self._arrived
        if self._tokens < 1:
            self._rejected += 1
            return False
        self._tokens -= 1
        self._rejected = max(0, self._rejected - 1)
        return True

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


async def search(stream: trio.abc.Stream, budget: float = BUDGET_SECONDS) -> Answer:
    """Find the offset of a server in virtual time, within the budget."""
    began = trio.current_time()
    found = await find_offset(Session(stream, ("127.0.0.1", 0)), VirtualClock(), zone=UTC)
    assert trio.current_time() - began <= budget + 1e-9
    return found


async def true_runs(make_ahead: Callable[[random.Random], Callable[[float], float]]) -> int:
    """Return how many of a hundred searches give a bound that holds at the end, or say that it does not."""
    true = 0
    for seed in range(100):
        chance = random.Random(seed)
        began = trio.current_time()
        ahead = make_ahead(chance)
        stream = Network(lambda moment: ahead(moment - began), NETWORKS["lan"](chance))  # noqa: B023  # used in this turn
        try:
            found = await search(stream)
        except WrongTimeError:
            true += 1
        else:
            true += abs(found.offset - ahead(trio.current_time() - began)) <= found.bound + 1e-9
    return true


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


@pytest.mark.parametrize(
    ("rate", "network"),
    [*product([500e-6, -500e-6, 1000e-6], NETWORKS), *product([50e-6, -50e-6, 0.08, -0.08], ["lan"])],
)
async def test_the_offset_of_a_slewed_clock_is_found(
    rate: float, network: str, autojump_clock: trio.testing.MockClock
) -> None:
    """For a clock that is slewed, the bound holds at the end; on a LAN up to the maximum of chrony, too."""
    for seed in range(25):
        chance = random.Random(seed)
        start = trio.current_time()
        ahead = chance.uniform(-1, 1)
        stream = Network(
            lambda moment: ahead + rate * (moment - start),  # noqa: B023  # used in this turn
            NETWORKS[network](chance),
        )
        found = await search(stream)
        true = ahead + rate * (trio.current_time() - start)
        assert abs(found.offset - true) <= found.bound + 1e-9
        if network == "lan":
            assert found.bound < (0.001 if abs(rate) < 0.01 else 0.1)


async def test_the_bound_holds_while_the_slew_changes(autojump_clock: trio.testing.MockClock) -> None:
    """The bound holds for a clock that is slewed by 500 ppm, first forward, then back, or not at all."""

    def make_ahead(chance: random.Random) -> Callable[[float], float]:
        first, second = (chance.choice((-500e-6, 0.0, 500e-6)) for _ in range(2))
        turns, start = chance.uniform(0, 5), chance.uniform(-1, 1)
        return lambda moment: start + first * min(moment, turns) + second * max(0.0, moment - turns)

    assert await true_runs(make_ahead) == 100


async def test_a_step_is_told_or_within_the_bound(autojump_clock: trio.testing.MockClock) -> None:
    """In 99 of 100 runs in which the clock is set, the result is an error, or a bound that holds."""

    def make_ahead(chance: random.Random) -> Callable[[float], float]:
        set_at, start = chance.uniform(0, 3), chance.uniform(-1, 1)
        step = chance.choice((-1, 1)) * 10 ** chance.uniform(-4, 1)
        return lambda moment: start + (step if moment >= set_at else 0.0)

    assert await true_runs(make_ahead) >= 99


@pytest.mark.parametrize("stops", [0.0, 0.5, 2.5])
async def test_a_frozen_clock_is_an_error(stops: float, autojump_clock: trio.testing.MockClock) -> None:
    """A clock that stands still from some moment on is reported as that."""
    with pytest.raises(WrongTimeError, match=r"^its clock stands still, or was set back: it told \d\d:"):
        await search(Network(lambda moment: 0.3 - max(0.0, moment - stops), lambda: 100e-6))


async def test_a_step_of_this_machines_clock_is_an_error(autojump_clock: trio.testing.MockClock) -> None:
    """If this machine's clock is set during the measurement, there is no offset."""
    session = Session(Network(_always(0.0), lambda: 100e-6), ("127.0.0.1", 0))
    with pytest.raises(WrongTimeError, match="this machine's clock was set by -2 s meanwhile"):
        await find_offset(session, VirtualClock(step=-2.0), zone=UTC)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("limit", [(10, 50), (5, 5), (2, 2), (1, 1), (0.2, 3)])
async def test_a_limited_rate_gives_an_offset(
    limit: tuple[float, float], network: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Under a limit of the rate, the search keeps what it knows, slows down, and ends in time."""
    for seed in range(20):
        chance = random.Random(seed)
        ahead = chance.uniform(-1, 1)
        stream = Network(_always(ahead), NETWORKS[network](chance), limit)
        found = await search(stream, SLOW_SECONDS)
        assert abs(found.offset - ahead) <= found.bound
        if network == "lan":
            assert found.bound < (0.005 if limit[0] >= 1 else 0.5)


async def test_a_close_after_a_limit_keeps_what_is_known(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server closes the connection because of its limit, the offset is known less exactly."""
    monkeypatch.setattr("tests.client.test_precise.ERROR_BUDGET", 2)
    found = await search(Network(_always(0.3), lambda: 100e-6, (0.001, 5)), SLOW_SECONDS)
    assert abs(found.offset - 0.3) <= found.bound < 0.5


PIECES = (
    b"JAM 12:34:56\r\n",
    b"JAM 12:34:57\r\n",
    b"JAM 99:00:00\r\n",
    b"ERROR rate_limited: later\r\n",
    b"ERROR bad_command: no\r\n",
    b"ERROR busy: later\r\n",
    b"JAM 12:",
    b"\x15\x03\x01",
    b"\xff\x00\n",
    b"",
)


async def test_any_server_gives_an_answer_or_an_error(nursery: trio.Nursery) -> None:
    """Whatever a server sends and whenever it closes, the client has a result without an exception."""
    for seed in range(300):
        chance = random.Random(seed)

        async def anything(stream: trio.abc.Stream, chance: random.Random = chance) -> None:
            while chance.random() < 0.8:
                await stream.send_all(b"".join(chance.choices(PIECES, k=chance.randint(0, 4))))
                if chance.random() < 0.7:
                    await stream.receive_some()

        address = await start_bad(nursery, anything)
        outcome = await AskOptions(precise=seed % 2 == 0, patience=0.05, zone=UTC).ask(Target(*address))
        assert isinstance(outcome, Answer | AskError)


async def test_few_requests_are_sent(autojump_clock: trio.testing.MockClock) -> None:
    """A search fits into a limit of 10 requests a second and 50 at once, and needs 50 in all."""
    stream = Network(_always(0.3), lambda: 100e-6)
    await search(stream)
    assert stream.requests <= BUDGET_REQUESTS == 50


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
        (says(b"JAM 12:34:56\r\n" + LIMITED), StrangerError, "answers more often than it was asked"),
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
    # A clock may be slewed until then, so this range is a little larger.
    assert list(bracket.next_change(86_400.0)) == pytest.approx([86_400.4975, 86_401.4016], abs=1e-4)


async def test_the_steady_clock_follows_the_monotonic_clock() -> None:
    """It starts at the wall clock's time, continues with the monotonic clock, and never waits too short."""
    clock = SteadyClock()
    assert abs(clock.now() - time.time()) < 1
    due = clock.now() + 0.01
    await clock.wait_until(due)
    assert clock.now() >= due
    stopped = SteadyClock(partial(add, 1000.0, 0.5), partial(add, 1.0, 1.0))
    assert stopped.now() == 1000.5


def test_the_steady_clock_uses_the_tightest_pair() -> None:
    """A pause between the readings of wall and monotonic clock does not shift the time."""
    real = 50.0
    pauses = iter([0.036, 0.002] * 3)

    def monotonic() -> float:
        nonlocal real
        real += 1e-6
        return real

    def wall() -> float:
        nonlocal real
        read = real + 1000
        real += next(pauses, 1e-6)  # the process is preempted here
        return read

    clock = SteadyClock(wall, monotonic)
    assert clock.now() == pytest.approx(real + 1000, abs=1e-5)
    assert clock.step() == pytest.approx(0, abs=1e-5)


async def test_a_pause_before_the_request_widens_the_bound(nursery: trio.Nursery) -> None:
    """A client that is preempted between its readings of the clocks has a wider bound, not a wrong offset."""
    address = await start_bad(nursery, tells(lambda: NOON))

    def now() -> float:
        time.sleep(0.05)  # preempted after the caller read the monotonic clock
        return NOON

    answer = await ask(*address, now=now, zone=UTC)
    assert answer.round_trip >= 0.05
