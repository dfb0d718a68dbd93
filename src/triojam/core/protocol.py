"""The TIME/JAM protocol: it takes bytes, and decides on the answers and the end of a connection.

Theory of operation
===================
A connection is a stream of lines. A line ends at the first LF and is well formed if the byte before that LF
is CR. A line without CR is rejected at its LF. So two parsers always agree about the end of a request.

Every call takes one event (bytes came, the stream ended, a deadline passed) and returns one `Outcome`: the
answers in order, the decision about each request, and the reason if the connection must be closed. How the
bytes were cut into calls never changes the answers.

One call decides on a bounded number of lines. A run of plain requests costs little and is decided as a whole.
Of all other lines, one call decides on `LINES_AT_ONCE` at most. The next call decides on the rest, so that
the caller can send the answers, and other tasks can run, between the calls.

There are three kinds of lines:

==========================  =========================================  ==================
line                        answer                                     the server will
==========================  =========================================  ==================
starts with ``TIME``        ``JAM hh:mm:ss`` CR LF                     read on
exactly ``QUIT``            none                                       close
anything else               ``ERROR <reason>: <what to send>`` CR LF   read on, or close
==========================  =========================================  ==================

An `ERROR` never echoes what the client sent.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from triojam.core.reasons import Disconnect, Refusal, Rejection

TIME = b"TIME"
REQUEST = b"TIME\r\n"
QUIT = b"QUIT\r"  # with its CR: lines are split at the LF

_JAM = re.compile(rb"JAM ([01]\d|2[0-3]):([0-5]\d):([0-5]\d)\r\n")

# The most frequent input: 1 to 64 times TIME CR LF; the value is the number of requests.
PLAIN = {REQUEST * times: times for times in range(1, 65)}

# How many lines one call decides one by one. Their error lines are 5 kB.
LINES_AT_ONCE = 64

# The advice in the answer to a rejected line.
ADVICE = {
    Rejection.BAD_COMMAND: "send TIME or QUIT, in upper case, then CR LF",
    Rejection.BAD_TERMINATOR: "end the line with CR LF (bytes 13 and 10), not with LF alone",
    Rejection.TOO_LONG: "send lines of at most {limit} bytes, CR LF included",
    Rejection.TIMEOUT: "send the whole line, CR LF included, without such a pause",
    Rejection.INCOMPLETE: "end the last line with CR LF before you close",
    Rejection.RATE_LIMITED: "send fewer requests a second",
    Rejection.DRAINING: "the server is shutting down, connect again",
}

# The answer to a refused connection. A denied network gets none: it must not learn which service this is.
# A client whose PROXY header is missing may belong to such a network.
REFUSALS = {
    Refusal.BUSY: b"ERROR busy: too many connections, try again later\r\n",
    Refusal.PER_SOURCE: b"ERROR per_source: too many connections from your address, close one first\r\n",
    Refusal.DENIED: b"",
    Refusal.PROXY_HEADER: b"",
}

# How much of a line is logged.
SHOWN_CHARACTERS = 64


def read_jam(line: bytes) -> int | None:
    """Return the second of the day in an answer line, CR LF included; None for any other line."""
    if (match := _JAM.fullmatch(line)) is None:
        return None
    hour, minute, second = map(int, match.groups())
    return hour * 3600 + minute * 60 + second


def printable(line: bytes) -> str:
    """Render bytes from the other side: escaped, and at most SHOWN_CHARACTERS of them."""
    text = line[:SHOWN_CHARACTERS].decode("latin-1").encode("unicode_escape").decode("ascii")
    return text[:SHOWN_CHARACTERS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The limits of a connection.

    max_line_bytes: the longest line, CR LF included, in bytes; 0 = no limit.
    error_budget: a rejected line adds one error, an answered line takes one away, down to 0. The connection
        is closed at this many errors; 0 = never.
    reply_to_rejected: False gives the classic behaviour: no `ERROR` text, the connection is closed.
    """

    max_line_bytes: int = 512
    error_budget: int = 10
    reply_to_rejected: bool = True
    _plain: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _error_lines: dict[Rejection, bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        most = max(self.max_line_bytes - len(REQUEST), 0) if self.max_line_bytes else ""
        plain = re.compile(rb"(?:TIME[^\n]{0,%b}\r\n)*+" % str(most).encode())
        lines = {
            reason: f"ERROR {reason}: {advice.format(limit=self.max_line_bytes)}\r\n".encode("ascii")
            for reason, advice in ADVICE.items()
        }
        object.__setattr__(self, "_plain", plain)
        object.__setattr__(self, "_error_lines", lines)

    def plain(self, data: bytes, start: int = 0) -> int:
        """Return the end of the run of plain requests in `data` that begins at `start`.

        A plain request is a whole line that is answered with the time.
        """
        match = self._plain.match(data, start)
        return match.end() if match else start

    def error_line(self, reason: Rejection) -> bytes:
        """Return the answer to a line that was rejected for `reason`."""
        return self._error_lines[reason]


def delivered(answers: bytes, taken: int) -> int:
    """Count the times that are complete in the first `taken` bytes of `answers`; no error line has "JAM "."""
    return answers.count(b"JAM ", 0, answers.rfind(b"\n", 0, taken) + 1)


@dataclass(slots=True)
class Outcome:
    """The decisions of one call.

    answers: whole answer lines, in the order of their requests.
    requests: how many requests were decided; each is either in `rejected` or has a `JAM` in `answers`.
    rejected: reason and line (without its LF, and not longer than the limit) of each rejected request.
    permits_used: how many lines used a permit.
    end: why the connection must be closed after the answers are sent; None = go on.
    time: the rendered time, if a request was answered.
    """

    answers: list[bytes] = field(default_factory=list)
    requests: int = 0
    rejected: list[tuple[Rejection, bytes]] = field(default_factory=list)
    permits_used: int = 0
    end: Disconnect | None = None
    time: bytes | None = None


class Connection:
    """The server's side of one connection.

    rules: may be replaced at any time; new rules apply to lines that are not decided yet.
    """

    __slots__ = ("_errors", "_partial", "_undecided", "rules")

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._partial = bytearray()
        self._undecided = b""  # empty, or begins with a whole line
        self._errors = 0

    @property
    def midline(self) -> bool:
        """Whether a line has begun, and its LF has not come."""
        return bool(self._partial)

    @property
    def more(self) -> bool:
        """Whether lines are left for the next call of `receive`, which may have no data."""
        return bool(self._undecided)

    @property
    def fresh(self) -> bool:
        """Whether the past of the connection does not matter for the next decision."""
        return not (self._partial or self._undecided or self._errors)

    def receive(self, data: bytes, jam: Callable[[], bytes], permits: int | None = None) -> Outcome:
        """Take bytes that arrived, and decide on lines, up to the limit of one call.

        `jam` renders the current time as a whole answer line. It is called at most once, after all of `data`
        has arrived, so that no answer is older than its request. `permits` is how many lines may be answered
        now, bad lines included; None = any number.
        """
        outcome = Outcome()
        data, self._undecided = self._undecided + data, b""
        start = looked_at = 0
        while outcome.end is None:
            if permits is None and not self._partial and (stop := self.rules.plain(data, start)) > start:
                self._answer(data.count(b"\n", start, stop), jam, outcome)
                start = stop
            stop = data.find(b"\n", start)
            if stop < 0:
                self._begin_line(data[start:], outcome)
                break
            if looked_at == LINES_AT_ONCE:
                self._undecided = data[start:]
                break
            looked_at += 1
            line = data[start:stop]
            if self._partial:
                line = self._take_partial() + line
            self._decide(line, jam, permits, outcome)
            start = stop + 1
        return outcome

    def end_of_stream(self) -> Outcome:
        """Decide about the end of the stream: the client has ended its sending side, or is gone."""
        outcome = Outcome(end=Disconnect.EOF)
        if self._partial:
            # No error line: the client may be gone, and a good client notices the missing answer.
            outcome.requests = 1
            outcome.rejected.append((Rejection.INCOMPLETE, self._take_partial()))
        return outcome

    def line_timeout(self) -> Outcome:
        """Decide about a line whose deadline has passed."""
        outcome = Outcome(end=Disconnect.LINE_TIMEOUT)
        self._reject(Rejection.TIMEOUT, self._take_partial(), outcome)
        return outcome

    def drain(self) -> Outcome:
        """Decide about a line that has begun, if there is one: the server stops, and waits no longer."""
        outcome = Outcome(end=Disconnect.DRAIN)
        if self._partial:
            self._reject(Rejection.DRAINING, self._take_partial(), outcome)
        return outcome

    def _begin_line(self, data: bytes, outcome: Outcome) -> None:
        """Keep the start of a line, unless it has reached the limit already."""
        self._partial += data
        longest = self.rules.max_line_bytes
        if longest and len(self._partial) >= longest:
            del self._partial[longest:]
            self._reject(Rejection.TOO_LONG, self._take_partial(), outcome)

    def _decide(self, line: bytes, jam: Callable[[], bytes], permits: int | None, outcome: Outcome) -> None:
        """Decide on one line, given without its LF."""
        if line == QUIT:
            outcome.end = Disconnect.QUIT
        elif 0 < self.rules.max_line_bytes <= len(line):  # the LF counts, too
            self._reject(Rejection.TOO_LONG, line[: self.rules.max_line_bytes], outcome)
        elif permits is not None and outcome.permits_used >= permits:
            self._reject(Rejection.RATE_LIMITED, line, outcome)
        else:
            outcome.permits_used += 1
            if not line.endswith(b"\r"):
                self._reject(Rejection.BAD_TERMINATOR, line, outcome)
            elif line.startswith(TIME):
                self._answer(1, jam, outcome)
            else:
                self._reject(Rejection.BAD_COMMAND, line, outcome)

    def _answer(self, times: int, jam: Callable[[], bytes], outcome: Outcome) -> None:
        if outcome.time is None:
            outcome.time = jam()
        outcome.requests += times
        outcome.answers += [outcome.time] * times
        self._errors = max(self._errors - times, 0)

    def _take_partial(self) -> bytes:
        line = bytes(self._partial)
        self._partial.clear()
        return line

    def _reject(self, reason: Rejection, line: bytes, outcome: Outcome) -> None:
        outcome.requests += 1
        outcome.rejected.append((reason, line))
        self._errors += 1
        if reason is Rejection.TOO_LONG:
            outcome.end = Disconnect.TOO_LONG
        if self.rules.reply_to_rejected:
            outcome.answers.append(self.rules.error_line(reason))
            # The errors can exceed the budget after a reload that lowers it.
            if 0 < self.rules.error_budget <= self._errors:
                outcome.end = outcome.end or Disconnect.ERROR_BUDGET
        else:
            outcome.end = outcome.end or Disconnect.REJECTED
