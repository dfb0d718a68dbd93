"""Finds a server clock's offset to a fraction of a second, from answers that carry whole seconds.

The moment at which the answer flips to the next second is sharp. An answer S to a request that was sent at
`a` and answered by `b`, both by our clock, says that the server's clock was between S and S + 1 at some
moment between `a` and `b`. Its offset lies between S - b and S + 1 - a, whatever the network does; every
answer can only narrow that down, and those around a flip narrow it from both sides.

First one question; then a sweep of more than a second, which must meet a flip; then a burst around each of
the next flips, as closely as the one before has left it. Requests go out when they are due, not when the
last answer is there, so that a long round trip costs precision only once.
"""

import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from math import ceil, inf
from typing import Protocol

import trio

from triojam.client.session import (
    DEFAULT_PORT,
    Answer,
    AskError,
    Session,
    SilentError,
    StrangerError,
    Target,
    WrongTimeError,
    connect,
)
from triojam.client.time_of_day import DAY, fold, format_second, second_of_day

BUDGET_SECONDS = 5.0
BUDGET_REQUESTS = 200

SWEEP_REQUESTS = 60
SWEEP_SECONDS = 1.05
BURST_REQUESTS = 45
BURSTS = 3
# Clocks of computers do not run apart faster than this; what was learnt earlier is widened by as much.
DRIFT = 100e-6
# Sleeping is this exact, in seconds; what is left is waited for by giving way again and again.
SLEEP_ERROR = 0.003


class LocalClock(Protocol):
    """The clock of this machine: seconds since the epoch, without steps."""

    def now(self) -> float:
        """Return the time."""

    async def wait_until(self, moment: float) -> None:
        """Return at that time, or as soon after it as can be."""


class SteadyClock:
    """The wall clock as it was at the start, carried on by the monotonic one."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.perf_counter
    ) -> None:
        self._monotonic = monotonic
        self._ahead = wall() - monotonic()

    def now(self) -> float:
        """Return the time."""
        return self._monotonic() + self._ahead

    async def wait_until(self, moment: float) -> None:
        """Sleep, but only as far as sleeping is exact."""
        await trio.sleep(max(0.0, moment - self.now() - SLEEP_ERROR))
        while self.now() < moment:
            await trio.lowlevel.checkpoint()


@dataclass
class Bracket:
    """Where the offset can be, in seconds.

    low, high: its bounds, as of the last answer.
    """

    low: float = -inf
    high: float = inf
    _last: float = 0.0

    def add(self, second: int, asked: float, answered: float) -> None:
        """Take an answer, a second of the day, and when it was asked for and there, by our clock's day.

        Raises WrongTimeError if no one clock could have given this answer and those before it.
        """
        low = fold(second - answered)
        if self.low > -inf:
            low += round((self.low - low) / DAY) * DAY  # around the clock, to where the others are
        high = low + 1 + answered - asked
        drift = DRIFT * abs(answered - self._last)
        self.low, self.high, self._last = max(low, self.low - drift), min(high, self.high + drift), answered
        if self.low >= self.high:
            raise WrongTimeError("its answers fit no one clock: it was set, or several servers answer")

    def next_flip(self, after: float) -> tuple[float, float]:
        """Return between which of our times the next second begins there; the first is not before `after`."""
        second = ceil(after + self.high)
        return second - self.high, second - self.low


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was found: the server's clock is `offset` ahead of ours, give or take `uncertainty`, in seconds.

    requests: how many it took. round_trip: the shortest one, in seconds. second: of the day, as said last.
    """

    offset: float
    uncertainty: float
    requests: int
    round_trip: float
    second: int


class _Search:
    def __init__(self, session: Session, clock: LocalClock, patience: float) -> None:
        self._session = session
        self._clock = clock
        self._patience = patience
        self._asked: deque[float] = deque()
        self.bracket = Bracket()
        self.round_trip = inf
        self.requests = 0
        self.second = 0

    async def ask_at(self, moments: Sequence[float], midnight: float) -> None:
        """Ask at each of these times, and take all the answers. Raises AskError."""
        failure: AskError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, moments)
            try:
                for _ in moments:
                    await self._take_answer(midnight)
            except AskError as exc:
                failure = exc
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _send(self, moments: Sequence[float]) -> None:
        for moment in moments:
            await self._clock.wait_until(moment)
            self._asked.append(self._clock.now())
            try:
                await self._session.send()
            except AskError:
                return  # whoever waits for the answers will hear of it, and perhaps more

    async def _take_answer(self, midnight: float) -> None:
        self.second = await self._session.receive(self._patience)
        answered = self._clock.now()
        if not self._asked:
            raise StrangerError("answers more often than it was asked")
        asked = self._asked.popleft()
        self.requests += 1
        self.round_trip = min(self.round_trip, answered - asked)
        self.bracket.add(self.second, asked - midnight, answered - midnight)


async def ask_precisely(
    host: str,
    port: int = DEFAULT_PORT,
    *,
    patience: float = 5.0,
    tls: ssl.SSLContext | None = None,
    zone: tzinfo | None = None,
) -> Answer:
    """Do as `triojam.client.ask` does, but ask so often and so timed that the bound becomes small.

    Takes up to BUDGET_SECONDS and BUDGET_REQUESTS. Raises AskError.
    """
    async with await connect(Target(host, port), patience=patience, tls=tls) as session:
        found = await find_offset(session, SteadyClock(), zone=zone, patience=patience)
    return Answer(
        format_second(found.second), found.offset, found.uncertainty, found.round_trip, session.address
    )


async def find_offset(
    session: Session, clock: LocalClock, *, zone: tzinfo | None = None, patience: float = 5.0
) -> Estimate:
    """Find the offset, within BUDGET_SECONDS and BUDGET_REQUESTS.

    zone: the time zone that the server answers in; None = this machine's. patience: for one answer, in
    seconds.

    Raises AskError.
    """
    search = _Search(session, clock, patience)
    began = clock.now()
    midnight = began - second_of_day(began, zone)
    with trio.move_on_after(BUDGET_SECONDS):  # what is known by then is true, if less precise
        await search.ask_at([began], midnight)
        await search.ask_at(_spread(clock.now(), SWEEP_SECONDS, SWEEP_REQUESTS), midnight)
        for _ in range(BURSTS):
            lead = search.round_trip
            first, last = search.bracket.next_flip(clock.now() - midnight + lead + SLEEP_ERROR)
            if last + midnight + 2 * lead > began + BUDGET_SECONDS:
                break
            burst = _spread(first - lead + midnight, last - first + lead, BURST_REQUESTS)
            await search.ask_at(burst, midnight)
    if not search.requests:
        raise SilentError(f"said nothing for {BUDGET_SECONDS:g} s without an answer")
    bracket = search.bracket
    return Estimate(
        offset=fold((bracket.low + bracket.high) / 2),
        uncertainty=(bracket.high - bracket.low) / 2,
        requests=search.requests,
        round_trip=search.round_trip,
        second=search.second,
    )


def _spread(first: float, length: float, count: int) -> list[float]:
    return [first + length * index / (count - 1) for index in range(count)]
