"""The TIME/JAM protocol: bytes in, answers and the fate of the connection out. No I/O, no clock.

Theory of operation
===================
A connection is a stream of lines. A line ends at the first LF and is well formed if the byte before that
LF is CR. Framing on the LF alone, and rejecting a line without CR instead of reading on, means that two
parsers can never disagree about where a request ends.

Every call takes what has happened (bytes came, the stream ended, a deadline passed) and returns one
`Outcome`: the answers due in order, what was decided about each request, and, once the connection is to
be closed, why. How the bytes were cut into calls never changes the answers.

Three things can become of a line:

==========================  =========================================  ==================
line                        answer                                     then
==========================  =========================================  ==================
starts with ``TIME``        ``JAM hh:mm:ss`` CR LF                     read on
exactly ``QUIT``            none                                       close
anything else               ``ERROR <reason>: <what to send>`` CR LF   read on, or close
==========================  =========================================  ==================

An `ERROR` never echoes what the client sent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from triojam.reasons import Disconnect, Refusal, Rejection

ERROR = b"ERROR "
TIME = b"TIME"
QUIT = b"QUIT\r"  # with its CR: lines are split at the LF

# A stopping server gives an idle client this long, in seconds, for a request that is on its way.
DRAIN_WINDOW = 0.05
# It has longer if it came, or had its last answer, less than this ago: its next request is only a round trip
# away, and closing before it arrives would leave it without an answer.
ON_ITS_WAY = 0.5

# What a refused connection is told; one from a denied network, nothing: it is not to learn what is here.
REFUSALS = {
    Refusal.BUSY: b"ERROR busy: too many connections, try again later\r\n",
    Refusal.PER_SOURCE: b"ERROR per_source: too many connections from your address, close one first\r\n",
    Refusal.DENIED: b"",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a connection may do.

    max_line_bytes: the longest line, CR LF included, in bytes; 0 = no limit.
    error_budget: the connection is closed at this many rejected lines in a row; 0 = never.
    reply_to_rejected: False gives the classic behaviour: no `ERROR` text, the connection is closed.
    """

    max_line_bytes: int = 512
    error_budget: int = 10
    reply_to_rejected: bool = True

    def error_line(self, reason: Rejection) -> bytes:
        """The answer to a line that was rejected for `reason`."""
        match reason:
            case Rejection.BAD_COMMAND:
                advice = "send TIME or QUIT, in upper case, then CR LF"
            case Rejection.BAD_TERMINATOR:
                advice = "end the line with CR LF (bytes 13 and 10), not with LF alone"
            case Rejection.TOO_LONG:
                advice = f"send lines of at most {self.max_line_bytes} bytes, CR LF included"
            case Rejection.TIMEOUT:
                advice = "send the whole line, CR LF included, without such a pause"
            case Rejection.INCOMPLETE:
                advice = "end the last line with CR LF before you close"
            case Rejection.RATE_LIMITED:
                advice = "send fewer requests a second"
            case _:  # Rejection.DRAINING
                advice = "the server is shutting down, connect again"
        return f"ERROR {reason}: {advice}\r\n".encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a client may take, in seconds; `math.inf` = for ever.

    idle: without the first byte of a request.
    line: from the first byte of a line to its LF.
    send: to take the answers to one read.
    """

    idle: float = 60.0
    line: float = 10.0
    send: float = 10.0


@dataclass(slots=True)
class Outcome:
    """What one call decided.

    answers: whole answer lines, in the order of their requests.
    requests: how many requests were decided on; each is either in `rejected` or has a `JAM` in `answers`.
    rejected: reason and line (without its LF, and no longer than the limit) of each refused request.
    end: why the connection is to be closed once the answers are sent; None = read on.
    """

    answers: list[bytes] = field(default_factory=list)
    requests: int = 0
    rejected: list[tuple[Rejection, bytes]] = field(default_factory=list)
    end: Disconnect | None = None


class Connection:
    """The server's side of one connection.

    rules: may be replaced at any time; new ones are for what comes then.
    """

    __slots__ = ("_errors_in_a_row", "_partial", "rules")

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._partial = bytearray()
        self._errors_in_a_row = 0

    @property
    def midline(self) -> bool:
        """Whether the first bytes of a line have come, and its LF has not."""
        return bool(self._partial)

    def receive(
        self, data: bytes, jam: Callable[[], bytes], permit: Callable[[], bool] | None = None
    ) -> Outcome:
        """Take what arrived.

        `jam` renders the current time as a whole answer line. It is called at most once, after all of
        `data` is in hand, so that no answer is older than the request it belongs to. `permit` is asked about
        each line, whatever it says: whether its sender may have one more request now; None = always.
        """
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self._partial:
            lines[0] = bytes(self._partial + lines[0])
            self._partial.clear()

        outcome = Outcome()
        time_line: bytes | None = None
        longest = self.rules.max_line_bytes
        for line in lines:
            if line == QUIT:
                outcome.end = Disconnect.QUIT
            elif (reason := self._fault(line, permit)) is not None:
                self._reject(reason, line[: longest or None], outcome)
            else:
                if time_line is None:
                    time_line = jam()
                outcome.requests += 1
                outcome.answers.append(time_line)
                self._errors_in_a_row = 0
            if outcome.end is not None:
                return outcome  # what follows on the wire is not a request any more

        self._partial += rest
        if longest and len(self._partial) >= longest:
            del self._partial[longest:]
            self._reject_partial(Rejection.TOO_LONG, outcome)
        return outcome

    def end_of_stream(self) -> Outcome:
        """The client has ended its sending side, or is gone."""
        outcome = Outcome(end=Disconnect.EOF)
        if self._partial:
            # Nobody may be listening, and a well-behaved client is told by the missing answer.
            outcome.requests = 1
            outcome.rejected.append((Rejection.INCOMPLETE, self._take_partial()))
        return outcome

    def line_timeout(self) -> Outcome:
        """The deadline for the rest of a line has passed."""
        outcome = Outcome(end=Disconnect.LINE_TIMEOUT)
        self._reject_partial(Rejection.TIMEOUT, outcome)
        return outcome

    def drain(self) -> Outcome:
        """The server stops waiting for the rest of a line, if there is one."""
        outcome = Outcome(end=Disconnect.DRAIN)
        if self._partial:
            self._reject_partial(Rejection.DRAINING, outcome)
        return outcome

    def _fault(self, line: bytes, permit: Callable[[], bool] | None) -> Rejection | None:
        """Return why a line, without its LF and not QUIT, gets no time."""
        if self.rules.max_line_bytes and len(line) >= self.rules.max_line_bytes:
            return Rejection.TOO_LONG  # the LF that was split off counts too
        if permit is not None and not permit():
            return Rejection.RATE_LIMITED
        if not line.endswith(b"\r"):
            return Rejection.BAD_TERMINATOR
        return None if line.startswith(TIME) else Rejection.BAD_COMMAND

    def _take_partial(self) -> bytes:
        line = bytes(self._partial)
        self._partial.clear()
        return line

    def _reject_partial(self, reason: Rejection, outcome: Outcome) -> None:
        self._reject(reason, self._take_partial(), outcome)

    def _reject(self, reason: Rejection, line: bytes, outcome: Outcome) -> None:
        outcome.requests += 1
        outcome.rejected.append((reason, line))
        self._errors_in_a_row += 1
        if reason is Rejection.TOO_LONG:
            outcome.end = Disconnect.TOO_LONG
        if self.rules.reply_to_rejected:
            outcome.answers.append(self.rules.error_line(reason))
            # More than the budget, if a reload has lowered it meanwhile.
            if 0 < self.rules.error_budget <= self._errors_in_a_row:
                outcome.end = outcome.end or Disconnect.ERROR_BUDGET
        else:
            outcome.end = outcome.end or Disconnect.REJECTED
