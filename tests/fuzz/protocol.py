"""Fuzzing the protocol: any bytes, cut anywhere, under rules that change. The oracle knows the answers.

An input is a header of `HEADER` bytes, then the bytes of the client. The header chooses the first rules, the
cuts, the place where the rules change, the new rules, the end, and the number of lines of the rate limit.
"""

import random
from itertools import pairwise

from tests.fuzz.oracle import JAM, Law, Oracle
from triojam.core.protocol import LINES_AT_ONCE, REQUEST, Connection, Outcome, Rules
from triojam.core.reasons import Rejection

HEADER = 5
LIMITS = (512, 0, 6, 20)
BUDGETS = (10, 0, 1, 3)
# How a connection goes on once the stream has been sent.
STAY, END_OF_STREAM, LINE_TIMEOUT, DRAIN = range(4)
# All error lines. They are made without any input of a client, so they cannot repeat it.
ERROR_LINES = {
    Rules(max_line_bytes=limit).error_line(reason): str(reason) for limit in LIMITS for reason in Rejection
}


def try_one(data: bytes) -> None:
    """Run one input twice: cut as it says, and cut at the change of rules only. The oracle must agree."""
    header, stream = data[:HEADER].ljust(HEADER, b"\0"), data[HEADER:]
    before, cut, change, after, ending = header
    middle = len(stream) * change // 256
    expected = _foresee(stream[:middle], stream[middle:], before, after, ending)
    for chosen in {cut, 255}:
        first = _cut(stream[:middle], chosen)
        second = _cut(stream[middle:], chosen)
        _compare(expected, _happen(first, second, before, after, ending))


def hold_step(available: int, outcome: Outcome) -> None:
    """Check the bounds of one step: the lines parsed one by one, and the bytes of the answers."""
    assert len(outcome.rejected) <= LINES_AT_ONCE + 1
    runs = available // len(REQUEST) * len("JAM hh:mm:ss\r\n")
    assert len(b"".join(outcome.answers)) <= runs + (LINES_AT_ONCE + 1) * max(map(len, ERROR_LINES))


def encode(stream: bytes, *, ending: int = STAY, cut: int = 255) -> bytes:
    """Make an input that sends `stream` under the default rules."""
    return bytes([0, cut, 0, 0, ending]) + stream


def _tokens(ending: int) -> int | None:
    return (ending >> 2) - 1 if ending >> 2 else None


def _law(choice: int) -> Law:
    return Law(limit=LIMITS[choice & 3], budget=BUDGETS[choice >> 2 & 3], reply=not choice & 16)


def _rules(choice: int) -> Rules:
    law = _law(choice)
    return Rules(max_line_bytes=law.limit, error_budget=law.budget, reply_to_rejected=law.reply)


def _foresee(first: bytes, second: bytes, before: int, after: int, ending: int) -> Oracle:
    oracle = Oracle(_law(before), _tokens(ending))
    oracle.receive(first)
    oracle.law = _law(after)
    oracle.receive(second)
    if oracle.end is None:
        match ending & 3:
            case 1:
                oracle.end_of_stream()
            case 2 if oracle.line:
                oracle.line_timeout()
            case 3:
                oracle.drain()
    return oracle


def _cut(stream: bytes, cut: int) -> list[bytes]:
    """Cut a stream: 255 not at all, 0 byte by byte, else at positions that depend on `cut`."""
    if cut == 255:
        return [stream] if stream else []
    chance = random.Random(cut)
    edges = [0]
    while edges[-1] < len(stream):
        edges.append(edges[-1] + (chance.randint(1, 1 + cut) if cut else 1))
    return [stream[start:stop] for start, stop in pairwise(edges)]


class _Watched:
    """A connection that checks and adds up all its outcomes."""

    def __init__(self, rules: Rules, tokens: int | None) -> None:
        self.connection = Connection(rules)
        self.tokens = tokens
        self.total = Outcome()
        self.asked = 0
        self.longest = rules.max_line_bytes

    def set_rules(self, rules: Rules) -> None:
        self.connection.rules = rules
        self.longest = rules.max_line_bytes and max(self.longest, rules.max_line_bytes)

    def receive(self, piece: bytes) -> None:
        more = True
        while more and self.total.end is None:
            asked = self.asked
            available = len(piece) + len(self.connection._undecided) + len(self.connection._partial)
            outcome = self.connection.receive(piece, self.jam, self.tokens)
            assert self.asked <= asked + 1, "the clock was asked more than once for one step"
            if self.tokens is not None:
                self.tokens -= outcome.permits_used
            hold_step(available, outcome)
            self.add(outcome)
            piece, more = b"", self.connection.more

    def jam(self) -> bytes:
        self.asked += 1
        return b"JAM 12:34:%02d\r\n" % (self.asked % 60)

    def add(self, outcome: Outcome) -> None:
        times = [answer for answer in outcome.answers if answer.startswith(b"JAM ")]
        newest = b"JAM 12:34:%02d\r\n" % (self.asked % 60)
        assert all(answer == newest for answer in times), "an older time than that of the last byte"
        assert outcome.requests == len(times) + len(outcome.rejected), "a request is not accounted for"
        if self.longest:
            assert len(self.connection._partial) < self.longest, "more is kept than the longest line"
        self.total.answers += outcome.answers
        self.total.requests += outcome.requests
        self.total.rejected += outcome.rejected
        self.total.end = outcome.end


def _happen(first: list[bytes], second: list[bytes], before: int, after: int, ending: int) -> Outcome:
    watched = _Watched(_rules(before), _tokens(ending))
    connection = watched.connection
    for pieces, rules in ((first, None), (second, _rules(after))):
        if rules is not None:
            watched.set_rules(rules)
        for piece in pieces:
            if watched.total.end is None:
                watched.receive(piece)
    if watched.total.end is None:
        match ending & 3:
            case 1:
                watched.add(connection.end_of_stream())
            case 2 if connection.midline:
                watched.add(connection.line_timeout())
            case 3:
                watched.add(connection.drain())
    return watched.total


def _compare(expected: Oracle, actual: Outcome) -> None:
    answers = [JAM if answer.startswith(b"JAM ") else ERROR_LINES[answer] for answer in actual.answers]
    due = (expected.answers, expected.requests, expected.rejected, expected.end)
    came = (answers, actual.requests, actual.rejected, actual.end)
    assert came == due, f"under {expected.law}\n{came} came, where was due\n{due}"
