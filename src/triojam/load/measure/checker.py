"""Checks the answers on one connection of a load, without its socket, and tallies the outcomes.

Every request of which a byte was sent is counted exactly once: as answered (with a right time), rejected
(with the ERROR that a bad line should get) or failed, by cause. So sent = answered + rejected + failed when
nothing is in flight. Each answer is checked for its shape, its order and its second.
"""

import re
from collections import deque
from dataclasses import dataclass

from triojam.core.protocol import read_jam
from triojam.load.measure.clock import ServerClock
from triojam.load.measure.tally import Tally

_REASON = re.compile(rb"ERROR ([a-z_]{1,30})\b")
# The right answers to a bad line; too_long if the server's limit on lines is short.
_REFUSALS = (b"bad_command", b"too_long")
# After these the server closes.
_CLOSING = (b"busy", b"draining", b"timeout", b"too_long")
# An answer is never longer than this.
_LONGEST_ANSWER = 512


@dataclass(slots=True)
class Expected:
    """Equal requests that were sent together.

    due: when they were due; their latency counts from then. sent: when they were sent; the server cannot have
    read its clock for them before.
    """

    due: float
    sent: float
    times: int
    wants_time: bool


class AnswerChecker:
    """Checks the answers of one connection. waiting: the requests in flight."""

    __slots__ = ("_clock", "_partial", "_tally", "waiting")

    def __init__(self, tally: Tally, clock: ServerClock) -> None:
        self.waiting: deque[Expected] = deque()
        self._tally = tally
        self._clock = clock
        self._partial = b""

    def sent(self, due: float, now: float, times: int, *, wants_time: bool) -> None:
        """Add requests that are about to be sent."""
        self._tally.sent += times
        self.waiting.append(Expected(due, now, times, wants_time))

    def not_sent(self, times: int) -> None:
        """Remove the last requests again: they were not sent."""
        self._tally.sent -= times
        while times:
            last = self.waiting[-1]
            taken = min(times, last.times)
            last.times -= taken
            times -= taken
            if not last.times:
                self.waiting.pop()

    def receive(self, data: bytes, now: float) -> str | None:
        """Check what has arrived. Returns a cause if the connection must be closed."""
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
        """The connection has ended: all requests in flight have failed."""
        missing = sum(each.times for each in self.waiting)
        if missing and self._partial:
            self._tally.failed[f"{cause} after half an answer"] += 1
            missing -= 1
        if missing:
            self._tally.failed[cause] += missing
        self.waiting.clear()
        self._partial = b""

    def closed(self) -> None:
        """The connection has ended while it was idle."""
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
            return error if reason[1] in _CLOSING else None
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
