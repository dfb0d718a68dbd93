"""Finds the offset of a server's clock to a fraction of a second, although answers carry whole seconds.

The moment at which the answer changes to the next second is sharp. A request was sent at `a`, and its
answer S arrived at `b`, both by our clock. So the server's clock was between S and S + 1 at some moment
between `a` and `b`, and its offset lies between S - b and S + 1 - a, whatever the network does. Each answer
narrows this range or leaves it as it is. Answers just before and after a change narrow it from both sides.

The search sends one request; then a sweep of more than a second, which includes a change; then a few around
each of the next changes, as closely as is known by then. Requests are sent when they are due, before the last
answer is there, so that a long round trip costs precision only once. The first and the last request of a
round are outside of the range: if the clock was set, their answers contradict it.

A clock may be slewed meanwhile, so the range widens with time. If the answers do not fit then, they are read
again with the fastest slew that a client of NTP makes.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import tzinfo
from itertools import takewhile
from math import ceil, inf
from typing import Protocol

import trio

from triojam.client.session import (
    Answer,
    AskError,
    ClosedError,
    RefusedError,
    Session,
    SilentError,
    StrangerError,
    WrongTimeError,
)
from triojam.client.time_of_day import DAY, fold, format_second, second_of_day
from triojam.core.reasons import Rejection

# A search stays within these two, and within a rate of 10 requests a second after 30 at once.
BUDGET_SECONDS = 5.0
BUDGET_REQUESTS = 50
# If the server limits the rate, the search takes up to this time.
SLOW_SECONDS = 20.0

SWEEP_REQUESTS = 12
SWEEP_SECONDS = 1.05
# Fewer than the rejected lines in a row after which a server closes the connection.
BURST_REQUESTS = 9
# With fewer, no request of a round is spent on its ends.
FEWEST_WITH_ENDS = 4
# In seconds a second. ntpd and adjtime slew a clock by 500 ppm at most, and either clock may be slewed.
# chrony slews by 8.3 % at most (maxslewrate).
SLEWS = (1000e-6, 0.1)
# Of the readings of both clocks, in seconds. A pair that takes longer was interrupted.
PAIRS = 10
STEP = 0.001
# trio.sleep may be late by this many seconds; the rest of a wait is spent in checkpoints.
SLEEP_ERROR = 0.003


class LocalClock(Protocol):
    """The clock of this machine: seconds since the epoch, without steps."""

    def now(self) -> float:
        """Return the time."""

    def step(self) -> float:
        """Return by how much the machine's clock was set since the start."""

    async def wait_until(self, moment: float) -> None:
        """Return at that time, or soon after it."""


class SteadyClock:
    """The wall clock at the start, continued by the monotonic clock."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.perf_counter
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead = self._measure()

    def now(self) -> float:
        """Return the time."""
        return self._monotonic() + self._ahead

    def step(self) -> float:
        """Return by how much the wall clock was set since the start."""
        return self._measure() - self._ahead

    async def wait_until(self, moment: float) -> None:
        """Sleep until shortly before that time, then only let other tasks run."""
        await trio.sleep(max(0.0, moment - self.now() - SLEEP_ERROR))
        while self.now() < moment:
            await trio.lowlevel.checkpoint()

    def _measure(self) -> float:
        """Return how far the wall clock is ahead of the monotonic clock, from the tightest of some pairs."""
        pairs = []
        for _ in range(PAIRS):
            before, wall, after = self._monotonic(), self._wall(), self._monotonic()
            pairs.append((after - before, wall - (before + after) / 2))
        return min(pairs)[1]


class Bracket:
    """The range of possible offsets, in seconds. low, high: its bounds, as of the last answer."""

    def __init__(self) -> None:
        self._answers: list[tuple[int, float, float]] = []
        self._slews = iter(SLEWS)
        self._reset(next(self._slews))

    def add(self, second: int, asked: float, answered: float) -> None:
        """Add an answer, a second of the day; `asked` and `answered` are by our clock's day.

        Raises WrongTimeError if no single clock could have given all answers so far.
        """
        self._answers.append((second, asked, answered))
        self._narrow(second, asked, answered)
        while self.low >= self.high:
            slew = next(self._slews, None)
            if slew is None:
                raise WrongTimeError(self._contradiction())
            self._reset(slew)
            for each in self._answers:
                self._narrow(*each)

    def next_change(self, after: float) -> tuple[float, float]:
        """Return the range of our times in which the server's next second begins; it starts after `after`."""
        low, high = self._at(after + 1)  # the change is not later
        second = ceil(after + high)
        return second - high, second - low

    def _reset(self, slew: float) -> None:
        self._slew = slew
        self._last = 0.0
        self.low, self.high = -inf, inf

    def _narrow(self, second: int, asked: float, answered: float) -> None:
        low = fold(second - answered)
        if self.low > -inf:
            low += round((self.low - low) / DAY) * DAY  # whole days, so that it is near the earlier bounds
        high = low + 1 + (answered - asked) * (1 + self._slew)
        earlier_low, earlier_high = self._at(answered)
        self.low, self.high, self._last = max(low, earlier_low), min(high, earlier_high), answered

    def _at(self, moment: float) -> tuple[float, float]:
        """Return the bounds at a later time."""
        slewed = self._slew * abs(moment - self._last)
        return self.low - slewed, self.high + slewed

    def _contradiction(self) -> str:
        second, until, _ = self._answers[-1]
        same = takewhile(lambda answer: answer[0] == second, reversed(self._answers))
        if (lasted := until - min(asked for _, asked, _ in same)) > 1:
            told = format_second(second)
            return f"its clock stands still, or was set back: it told {told} for {lasted:.1f} s"
        return "its answers fit no one clock: it was set, or several servers answer"


class _Search:
    def __init__(self, session: Session, clock: LocalClock, zone: tzinfo | None, patience: float) -> None:
        self._session = session
        self._clock = clock
        self._patience = patience
        self._asked: deque[float] = deque()
        self._limited = False
        self._budget = BUDGET_SECONDS
        self._scope = trio.CancelScope()
        self.began = clock.now()
        self.midnight = self.began - second_of_day(self.began, zone)
        self.bracket = Bracket()
        self.round_trip = inf
        self.second: int | None = None

    async def ask_all(self) -> None:
        """Send all requests, within the budget. Raises AskError."""
        self._scope.deadline = trio.current_time() + BUDGET_SECONDS
        with self._scope:  # the bounds are right at any time, only wider
            await self._ask_at([self.began])
            now = self._clock.now()
            await self._ask_at(_spread(now, now + SWEEP_SECONDS, SWEEP_REQUESTS))
            try:
                await self._follow_changes()
            except ClosedError:
                if self._budget != SLOW_SECONDS:
                    raise  # else the limit is the reason, and what is known holds

    async def _follow_changes(self) -> None:
        requests, pause = BURST_REQUESTS, 0.0
        while True:
            if self._limited:
                self._limited = False
                requests, pause = (requests // 2, pause) if requests > 1 else (1, 2 * pause + 1)
            lead = self.round_trip
            margin = lead + (self.bracket.high - self.bracket.low) / requests
            after = self._clock.now() - self.midnight + lead + margin + SLEEP_ERROR + pause
            first, last = (moment + self.midnight for moment in self.bracket.next_change(after))
            if last + margin + 2 * lead > self.began + self._budget:
                return
            if requests < FEWEST_WITH_ENDS:
                await self._ask_at(_within(first - lead, last, requests))
            else:
                await self._ask_at(_spread(first - lead - margin, last + margin, requests))

    async def _ask_at(self, moments: Sequence[float]) -> None:
        """Send a request at each of these times until the server limits the rate, and take all answers."""
        failure: AskError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, moments)
            try:
                for moment in moments:
                    await self._take_answer(due=max(0.0, moment - self._clock.now()))
                    if self._limited and not self._asked:
                        break
            except AskError as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:  # raised here, or it would be in an exception group
            raise failure

    async def _send(self, moments: Sequence[float]) -> None:
        for moment in moments:
            await self._clock.wait_until(moment)
            if self._limited:
                return
            self._asked.append(self._clock.now())
            try:
                await self._session.send()
            except AskError:
                return  # the next receive fails too, with a better reason

    async def _take_answer(self, due: float) -> None:
        try:
            second: int | None = await self._session.receive(self._patience, due=due)
        except RefusedError as exc:
            if exc.reason != Rejection.RATE_LIMITED or self.second is None:
                raise
            second = None
        answered = self._clock.now()
        if not self._asked:
            raise StrangerError("answers more often than it was asked")
        asked = self._asked.popleft()
        if second is None:
            self._slow_down()
            return
        self.second = second
        self.round_trip = min(self.round_trip, answered - asked)
        self.bracket.add(second, asked - self.midnight, answered - self.midnight)

    def _slow_down(self) -> None:
        self._limited = True
        self._scope.deadline += SLOW_SECONDS - self._budget
        self._budget = SLOW_SECONDS


async def find_offset(
    session: Session,
    clock: LocalClock | None = None,
    *,
    zone: tzinfo | None = None,
    patience: float = 5.0,
) -> Answer:
    """Find the offset at the time of the last answer, within BUDGET_SECONDS and BUDGET_REQUESTS.

    A server that limits the rate of requests is asked more slowly, for SLOW_SECONDS at most.

    clock: None = this machine's. zone: the time zone of the answers; None = this machine's. patience: how
    long to wait for one answer, in seconds. The result has the last time and the shortest round trip.

    Raises AskError.
    """
    clock = clock or SteadyClock()
    search = _Search(session, clock, zone, patience)
    await search.ask_all()
    if search.second is None:
        raise SilentError(f"said nothing for {BUDGET_SECONDS:g} s without an answer")
    if abs(step := clock.step()) > STEP:
        raise WrongTimeError(f"this machine's clock was set by {step:+.3g} s meanwhile: ask again")
    low, high = search.bracket.low, search.bracket.high
    return Answer(
        time=format_second(search.second),
        offset=fold((low + high) / 2),
        bound=(high - low) / 2,
        round_trip=search.round_trip,
        address=session.address,
    )


def _spread(first: float, last: float, count: int) -> list[float]:
    """Return moments at even intervals, with both ends."""
    return [first + (last - first) * index / (count - 1) for index in range(count)]


def _within(first: float, last: float, count: int) -> list[float]:
    """Return moments at even intervals, without the ends."""
    return _spread(first, last, count + 2)[1:-1]
