"""Checks the answers on one connection of a load, without its socket, and tallies the outcomes.

Every request of which a byte was sent is counted exactly once: as answered (with a right time), rejected
(with the ERROR that a bad line should get) or failed, by cause. So sent = answered + rejected + failed when
nothing is in flight. Each answer is checked for its shape, its order and its second.
"""

import re
from array import array
from collections import deque
from dataclasses import dataclass

from triojam.core.protocol import read_jam
from triojam.load.measure.clock import ServerClock
from triojam.load.measure.tally import Tally

_REASON = re.compile(rb"ERROR ([a-z_]{1,30})\b")
# The right answers to a bad line; too_long if the server's limit on lines is short.
_REFUSALS = (b"bad_command", b"too_long")
# After these the server closes.
_LAST_WORDS = (b"busy", b"per_source", b"draining", b"timeout", b"too_long")
# An answer is never longer than this.
_LONGEST_ANSWER = 512
# The cause by which requests fail that were sent behind a line after which the server closed.
AFTER_THE_END = "sent after a line that ended the connection"
# Latencies have 4 bytes.
_LONGEST_LATENCY = 2**32 - 1


class Records:
    """Where the outcomes go: a tally, and the latencies of right answers in microseconds.

    measured_from: requests whose latency counts from before this time belong to the warm-up.
    """

    __slots__ = ("latencies", "measured_from", "tally")

    def __init__(self, tally: Tally, measured_from: float = 0.0) -> None:
        self.tally = tally
        self.measured_from = measured_from
        self.latencies = array("I")

    def take_latencies(self) -> "array[int]":
        """Return the latencies since the last call."""
        taken, self.latencies = self.latencies, array("I")
        return taken


@dataclass(slots=True)
class Expected:
    """Equal requests that were sent together.

    start: from when their latency counts. sent: when they were sent; the server cannot have read its clock
    for them before.
    """

    start: float
    sent: float
    times: int
    wants_time: bool


class AnswerChecker:
    """Checks the answers of one connection.

    waiting: the requests in flight. errors: how many errors the server has counted against its budget.
    ended_by: the last word of the server, after which it closes; None = none yet. refused: whether the last
    answer was an ERROR. outcomes: how many requests have one.
    """

    __slots__ = ("_clock", "_partial", "_records", "ended_by", "errors", "outcomes", "refused", "waiting")

    def __init__(self, records: Records, clock: ServerClock) -> None:
        self.waiting: deque[Expected] = deque()
        self.errors = self.outcomes = 0
        self.ended_by: str | None = None
        self.refused = False
        self._records = records
        self._clock = clock
        self._partial = b""

    def sent(self, start: float, now: float, times: int, *, wants_time: bool) -> None:
        """Add requests that are about to be sent."""
        self._records.tally.sent += times
        self.waiting.append(Expected(start, now, times, wants_time))

    def not_sent(self, times: int) -> int:
        """Remove the last requests again, which were not sent; return how many there were.

        There are fewer if the server has answered lines that it did not get yet.
        """
        removed = 0
        while removed < times and self.waiting:
            last = self.waiting[-1]
            taken = min(times - removed, last.times)
            last.times -= taken
            removed += taken
            if not last.times:
                self.waiting.pop()
        self._records.tally.sent -= removed
        return removed

    def receive(self, data: bytes, now: float) -> str | None:
        """Check what has arrived; return a cause if the connection must be closed at once."""
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

    def lost(self, cause: str, now: float, *, in_time: bool = True) -> None:
        """The connection has ended: all requests in flight have failed.

        in_time: False if they were given up because no answer came in time; their waits count as latencies
        that are longer.
        """
        tally = self._records.tally
        if not in_time:
            for each in self.waiting:
                if each.start < self._records.measured_from:
                    continue
                tally.longer[int(max(now - each.start, 0.0) * 1e6)] += each.times
        missing = sum(each.times for each in self.waiting)
        if missing and self._partial:
            tally.failed[f"{cause} after half an answer"] += 1
            missing -= 1
        if missing:
            tally.failed[cause] += missing
        self.waiting.clear()
        self._partial = b""

    def closed(self, *, cleanly: bool, now: float) -> bool:
        """The server has closed the connection; return whether that was the answer to a bad line.

        With the setting on_reject = close, the server answers bad lines so.
        """
        if self._partial and not self.waiting:
            self._records.tally.unasked["something else"] += 1
            self._partial = b""
        if not cleanly or self._partial or not self.waiting or self.waiting[0].wants_time:
            return False
        self._records.tally.closed_instead += 1
        self._settle(self.waiting[0], 1, now)
        return True

    def _take(self, line: bytes, now: float) -> str | None:
        reason = _REASON.match(line)
        error = f"ERROR {reason[1].decode()}" if reason else "something else"
        if reason and reason[1] in _LAST_WORDS:
            self.ended_by = error
        if not self.waiting:
            self._records.tally.unasked[error] += 1
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
            self.errors += 1
            self._settle(first, 1, now, refused=True)
            return AFTER_THE_END if self.ended_by else None
        elif said is not None:
            self._fail(first, "a time for a bad line")
        elif reason:
            self.errors += 1
            self.refused = True
            self._fail(first, error)
            return error if self.ended_by else None
        else:
            return error
        return None

    def _settle(self, first: Expected, times: int, now: float, *, refused: bool = False) -> None:
        records = self._records
        if first.wants_time:
            records.tally.answered += times
            if self.errors:
                self.errors = max(0, self.errors - times)
        else:
            records.tally.rejected += times
        self.refused = refused
        self.outcomes += times
        if first.start < records.measured_from:
            records.tally.warmed_up += times
        else:
            latency = min(max(int((now - first.start) * 1e6), 0), _LONGEST_LATENCY)
            if times == 1:
                records.latencies.append(latency)
            else:
                records.latencies.extend([latency] * times)
        first.times -= times
        if not first.times:
            self.waiting.popleft()

    def _fail(self, first: Expected, cause: str) -> None:
        self._records.tally.failed[cause] += 1
        self.outcomes += 1
        first.times -= 1
        if not first.times:
            self.waiting.popleft()
