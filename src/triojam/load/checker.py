"""One connection of a load, without its socket: what was sent, what must come back, what did; and the tally.

Every request that was begun to be sent ends in exactly one place: answered (the time that was asked for),
rejected (the ERROR that the line was meant to get) or failed, by cause. So sent = answered + rejected +
failed once nothing is in flight, and no answer is merely counted: each is checked for its shape, its place
in the order, and its second.
"""

import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from triojam.client.time_of_day import DAY, fold
from triojam.core.protocol import read_jam

_REASON = re.compile(rb"ERROR ([a-z_]{1,30})\b")
# What a line that is no request may be told; a short limit on lines makes it the second.
_REFUSALS = (b"bad_command", b"too_long")
# After these the server closes.
_LAST_WORDS = (b"busy", b"draining", b"timeout", b"too_long")
# So many like answers in a row are recognised at a glance.
_AT_A_GLANCE = 64
# Longer than this without an LF, it is no answer.
_LONGEST_ANSWER = 512


@dataclass
class Tally:
    """What has become of all requests so far.

    failed: requests that were sent in vain, by cause. unconnected: connections that did not come about, by
    cause. unasked: lines that came although nothing was asked, such as ERROR busy. opened: connections.
    latencies: in microseconds, and how many there were of each. never_sent: requests of an open loop that
    were due and for which no connection became free.
    """

    sent: int = 0
    answered: int = 0
    rejected: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    unconnected: Counter[str] = field(default_factory=Counter)
    unasked: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)
    opened: int = 0
    never_sent: int = 0

    @property
    def settled(self) -> int:
        """Requests that got the answer they should get."""
        return self.answered + self.rejected

    @property
    def in_flight(self) -> int:
        """Requests of which nothing has become yet."""
        return self.sent - self.settled - self.failed.total()

    def settle(self, seconds: float, times: int, *, wants_time: bool) -> None:
        """Add right answers that took so long."""
        if wants_time:
            self.answered += times
        else:
            self.rejected += times
        self.latencies[int(seconds * 1e6)] += times


class ServerClock:
    """Which seconds a server may say, by our clock and the offset between the two.

    second_of_day: by the server's clock as far as we know, from the time that the load measures with.
    """

    def __init__(self, second_of_day: Callable[[float], float]) -> None:
        self._second_of_day = second_of_day
        self.usual: dict[bytes, int] = {}  # the current answer, once and more often
        self._usual_until = 0.0

    def fits(self, second: int, asked: float, now: float) -> bool:
        """Whether a clock may have shown it between the two times, give or take one second."""
        first, last = int(self._second_of_day(asked)) - 1, int(self._second_of_day(now)) + 1
        return (second - first) % DAY <= (last - first) % DAY

    def see(self, line: bytes, second: int, now: float) -> None:
        """Expect this answer from now on, for as long as it is right."""
        ahead = fold(second + 2 - self._second_of_day(now))
        if line not in self.usual:
            self.usual = {line * times: times for times in range(1, _AT_A_GLANCE + 1)}
        self._usual_until = now + ahead

    def forget(self, now: float) -> None:
        """Expect it no more, if it is out of date."""
        if now >= self._usual_until:
            self.usual = {}


@dataclass(slots=True)
class Expected:
    """Requests that were sent together and are alike.

    due: when they were to be sent, from which latency counts. sent: when they were, before which no clock
    can have been read for them.
    """

    due: float
    sent: float
    times: int
    wants_time: bool


class AnswerChecker:
    """The requests of one connection that wait for their answers."""

    __slots__ = ("_clock", "_partial", "_tally", "waiting")

    def __init__(self, tally: Tally, clock: ServerClock) -> None:
        self.waiting: deque[Expected] = deque()
        self._tally = tally
        self._clock = clock
        self._partial = b""

    def sent(self, due: float, now: float, times: int, *, wants_time: bool) -> None:
        """Requests were begun to be sent."""
        self._tally.sent += times
        self.waiting.append(Expected(due, now, times, wants_time))

    def not_sent(self, times: int) -> None:
        """The last ones were not, after all."""
        self._tally.sent -= times
        while times:
            last = self.waiting[-1]
            taken = min(times, last.times)
            last.times -= taken
            times -= taken
            if not last.times:
                self.waiting.pop()

    def receive(self, data: bytes, now: float) -> str | None:
        """Take what came; return what is wrong with it, if the connection is no use any more."""
        if not self._partial and self.waiting:
            first, times = self.waiting[0], self._clock.usual.get(data, 0)
            if times and first.wants_time and times <= first.times:
                self._settle(first, times, now)
                return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if (fault := self._take(line, now)) is not None:
                return fault
        return "something else" if len(self._partial) > _LONGEST_ANSWER else None

    def lost(self, cause: str) -> None:
        """The connection has ended, and with it every request that waits."""
        missing = sum(each.times for each in self.waiting)
        if missing and self._partial:
            self._tally.failed[f"{cause} after half an answer"] += 1
            missing -= 1
        if missing:
            self._tally.failed[cause] += missing
        self.waiting.clear()
        self._partial = b""

    def closed(self) -> None:
        """The connection has ended between requests."""
        if self._partial:
            self._tally.unasked["something else"] += 1
            self._partial = b""

    def _take(self, line: bytes, now: float) -> str | None:
        reason = _REASON.match(line)
        error = f"ERROR {reason[1].decode()}" if reason else "something else"
        if not self.waiting:
            self._tally.unasked[error] += 1
            return error
        first = self.waiting[0]
        said = read_jam(line + b"\n")
        if said is not None and first.wants_time:
            if not self._clock.fits(said, first.sent, now):
                self._fail(first, "wrong time")
                return None
            self._clock.see(line + b"\n", said, now)
            self._settle(first, 1, now)
        elif reason and reason[1] in _REFUSALS and not first.wants_time and line.endswith(b"\r"):
            self._settle(first, 1, now)
        elif said is not None:
            self._fail(first, "a time for a bad line")
        elif reason:
            self._fail(first, error)
            return error if reason[1] in _LAST_WORDS else None
        else:
            return error
        return None

    def _settle(self, first: Expected, times: int, now: float) -> None:
        self._tally.settle(now - first.due, times, wants_time=first.wants_time)
        self._leave(first, times)

    def _fail(self, first: Expected, cause: str) -> None:
        self._tally.failed[cause] += 1
        self._leave(first, 1)

    def _leave(self, first: Expected, times: int) -> None:
        first.times -= times
        if not first.times:
            self.waiting.popleft()
