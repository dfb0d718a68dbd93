"""Finds the offset of a server's clock to a fraction of a second, although answers carry whole seconds.

The moment at which the answer changes to the next second is sharp. A request was sent at `a`, and its
answer S arrived at `b`, both by our clock. So the server's clock was between S and S + 1 at some moment
between `a` and `b`, and its offset lies between S - b and S + 1 - a, whatever the network does. Each answer
narrows this range or leaves it as it is. Answers just before and after a change narrow it from both sides.

The search sends one request; then a sweep of more than a second, which includes a change; then a burst
around each of the next changes, as closely as is known by then. Requests are sent when they are due, before
the last answer is there, so that a long round trip costs precision only once.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import tzinfo
from math import ceil, inf
from typing import Protocol

import trio

from triojam.client.session import Answer, AskError, Session, SilentError, StrangerError, WrongTimeError
from triojam.client.time_of_day import DAY, fold, format_second, second_of_day

BUDGET_SECONDS = 5.0
BUDGET_REQUESTS = 200

SWEEP_REQUESTS = 60
SWEEP_SECONDS = 1.05
BURST_REQUESTS = 45
BURSTS = 3
# Two computers' clocks do not drift apart faster than this; the bounds widen at this rate.
DRIFT = 100e-6
# trio.sleep may be late by this many seconds; the rest of a wait is spent in checkpoints.
SLEEP_ERROR = 0.003


class LocalClock(Protocol):
    """The clock of this machine: seconds since the epoch, without steps."""

    def now(self) -> float:
        """Return the time."""

    async def wait_until(self, moment: float) -> None:
        """Return at that time, or soon after it."""


class SteadyClock:
    """The wall clock at the start, continued by the monotonic clock."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.perf_counter
    ) -> None:
        self._monotonic = monotonic
        self._ahead = wall() - monotonic()

    def now(self) -> float:
        """Return the time."""
        return self._monotonic() + self._ahead

    async def wait_until(self, moment: float) -> None:
        """Sleep until shortly before that time, then only let other tasks run."""
        await trio.sleep(max(0.0, moment - self.now() - SLEEP_ERROR))
        while self.now() < moment:
            await trio.lowlevel.checkpoint()


class Bracket:
    """The range of possible offsets, in seconds. low, high: its bounds, as of the last answer."""

    def __init__(self) -> None:
        self.low, self.high = -inf, inf
        self._last = 0.0

    def add(self, second: int, asked: float, answered: float) -> None:
        """Add an answer, a second of the day; `asked` and `answered` are by our clock's day.

        Raises WrongTimeError if no single clock could have given all answers so far.
        """
        low = fold(second - answered)
        if self.low > -inf:
            low += round((self.low - low) / DAY) * DAY  # whole days, so that it is near the earlier bounds
        high = low + 1 + answered - asked
        drift = DRIFT * abs(answered - self._last)
        self.low, self.high, self._last = max(low, self.low - drift), min(high, self.high + drift), answered
        if self.low >= self.high:
            raise WrongTimeError("its answers fit no one clock: it was set, or several servers answer")

    def next_change(self, after: float) -> tuple[float, float]:
        """Return the range of our times in which the server's next second begins; it starts after `after`."""
        second = ceil(after + self.high)
        return second - self.high, second - self.low


class _Search:
    def __init__(self, session: Session, clock: LocalClock, zone: tzinfo | None, patience: float) -> None:
        self._session = session
        self._clock = clock
        self._patience = patience
        self._asked: deque[float] = deque()
        self.began = clock.now()
        self.midnight = self.began - second_of_day(self.began, zone)
        self.bracket = Bracket()
        self.round_trip = inf
        self.second: int | None = None

    async def ask_all(self) -> None:
        """Send all requests. Raises AskError."""
        await self._ask_at([self.began])
        await self._ask_at(_spread(self._clock.now(), SWEEP_SECONDS, SWEEP_REQUESTS))
        for _ in range(BURSTS):
            lead = self.round_trip
            first, last = self.bracket.next_change(self._clock.now() - self.midnight + lead + SLEEP_ERROR)
            if last + self.midnight + 2 * lead > self.began + BUDGET_SECONDS:
                return
            await self._ask_at(_spread(first - lead + self.midnight, last - first + lead, BURST_REQUESTS))

    async def _ask_at(self, moments: Sequence[float]) -> None:
        """Send a request at each of these times, and take all answers."""
        failure: AskError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, moments)
            try:
                for _ in moments:
                    await self._take_answer()
            except AskError as exc:
                failure = exc
                nursery.cancel_scope.cancel()
        if failure is not None:  # raised here, or it would be in an exception group
            raise failure

    async def _send(self, moments: Sequence[float]) -> None:
        for moment in moments:
            await self._clock.wait_until(moment)
            self._asked.append(self._clock.now())
            try:
                await self._session.send()
            except AskError:
                return  # the next receive fails too, with a better reason

    async def _take_answer(self) -> None:
        self.second = await self._session.receive(self._patience)
        answered = self._clock.now()
        if not self._asked:
            raise StrangerError("answers more often than it was asked")
        asked = self._asked.popleft()
        self.round_trip = min(self.round_trip, answered - asked)
        self.bracket.add(self.second, asked - self.midnight, answered - self.midnight)


async def find_offset(
    session: Session,
    clock: LocalClock | None = None,
    *,
    zone: tzinfo | None = None,
    patience: float = 5.0,
) -> Answer:
    """Find the offset, within BUDGET_SECONDS and BUDGET_REQUESTS.

    clock: None = this machine's. zone: the time zone of the answers; None = this machine's. patience: how
    long to wait for one answer, in seconds. The result has the last time and the shortest round trip.

    Raises AskError.
    """
    search = _Search(session, clock or SteadyClock(), zone, patience)
    with trio.move_on_after(BUDGET_SECONDS):  # the bounds are right at any time, only wider
        await search.ask_all()
    if search.second is None:
        raise SilentError(f"said nothing for {BUDGET_SECONDS:g} s without an answer")
    low, high = search.bracket.low, search.bracket.high
    return Answer(
        time=format_second(search.second),
        offset=fold((low + high) / 2),
        bound=(high - low) / 2,
        round_trip=search.round_trip,
        address=session.address,
    )


def _spread(first: float, length: float, count: int) -> list[float]:
    return [first + length * index / (count - 1) for index in range(count)]
