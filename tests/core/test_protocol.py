"""The protocol alone: bytes in, decisions out."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triojam.core.protocol import LINES_AT_ONCE, Connection, Outcome, Rules
from triojam.core.reasons import Disconnect, Rejection
from triojam.verify.vectors import VECTORS, Vector, cuts

JAM = b"JAM 12:34:56\r\n"
RULES = Rules()
ERROR_LINES = {reason: RULES.error_line(reason) for reason in Rejection}


def feed(pieces: list[bytes], *, ended: bool = False, rules: Rules = RULES) -> tuple[bytes, Outcome]:
    """Feed a new connection until it ends; return all answers as bytes, and the sum of the outcomes."""
    connection = Connection(rules)
    total = Outcome()
    for piece in [*pieces, None] if ended else pieces:
        steps = [connection.end_of_stream()] if piece is None else receive(connection, piece)
        for outcome in steps:
            total.answers += outcome.answers
            total.requests += outcome.requests
            total.rejected += outcome.rejected
            total.end = outcome.end
        if total.end is not None:
            break
    return b"".join(total.answers), total


def receive(connection: Connection, data: bytes) -> list[Outcome]:
    """Let a connection receive `data`, in all steps that are necessary."""
    outcomes = [connection.receive(data, lambda: JAM)]
    while connection.more and outcomes[-1].end is None:
        outcomes.append(connection.receive(b"", lambda: JAM))
    return outcomes


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: repr(vector.sent[:24]))
def test_every_vector_is_decided_as_the_table_says(vector: Vector) -> None:
    """Every row of the table holds, however its bytes are cut."""
    for pieces in cuts(vector.sent):
        answers, outcome = feed(pieces, ended=vector.ended)
        assert answers == vector.expected(JAM, ERROR_LINES)
        assert outcome.requests == vector.requests
        assert [reason for reason, _ in outcome.rejected] == vector.rejected
        assert outcome.end == vector.end


words = st.sampled_from(
    [b"TIME", b"QUIT", b"\r\n", b"\n", b"\r", b"TIME\r\n", b"x" * 200, b"HELLO\r\n", b"\x00", b"TIME\n"]
)
streams = st.lists(words | st.binary(max_size=8), max_size=40).map(b"".join)
some_rules = st.builds(
    Rules,
    max_line_bytes=st.sampled_from([0, 6, 20, 512]),
    error_budget=st.integers(0, 4),
    reply_to_rejected=st.booleans(),
)


@given(stream=streams, rules=some_rules, ended=st.booleans(), data=st.data())
def test_cuts_do_not_change_the_outcome(
    stream: bytes, rules: Rules, *, ended: bool, data: st.DataObject
) -> None:
    """A stream in pieces has the same answers, counts and end as the whole stream."""
    positions = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted), label="cuts")
    edges = [0, *positions, len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges) if a < b]
    assert feed(pieces, ended=ended, rules=rules) == feed([stream], ended=ended, rules=rules)


@given(stream=streams, rules=some_rules, ended=st.booleans())
def test_every_request_is_decided_once(stream: bytes, rules: Rules, *, ended: bool) -> None:
    """Every request is rejected, or has exactly one time among the answers."""
    answers, outcome = feed([stream], ended=ended, rules=rules)
    assert outcome.requests == answers.count(JAM) + len(outcome.rejected)


@given(stream=streams, rules=some_rules)
def test_an_unfinished_line_is_bounded(stream: bytes, rules: Rules) -> None:
    """A connection keeps fewer bytes than the limit of a line."""
    connection = Connection(rules)
    receive(connection, stream)
    if rules.max_line_bytes:
        assert len(connection._partial) < rules.max_line_bytes


hostile = st.lists(
    st.sampled_from([b"\n", b"x\r\n", b"TIME\n", b"TIME\r\n", b"T", b"\r"]), max_size=4096
).map(b"".join)


@given(stream=hostile | st.binary(max_size=4096), permits=st.none() | st.integers(0, 200))
def test_one_step_is_bounded(stream: bytes, permits: int | None) -> None:
    """For any bytes, one step decides at most 64 lines one by one, besides plain requests."""
    decided: list[bytes] = []

    class Counting(Connection):
        __slots__ = ()

        def _decide(self, line: bytes, *arguments: Any) -> None:
            decided.append(line)
            super()._decide(line, *arguments)

    connection = Counting(Rules(error_budget=0))
    while stream or connection.more:
        before = len(decided)
        outcome = connection.receive(stream, lambda: JAM, permits)
        assert len(decided) - before <= LINES_AT_ONCE
        errors = [answer for answer in outcome.answers if answer != JAM]
        assert len(errors) <= LINES_AT_ONCE
        stream = b""


def test_bad_lines_between_good_ones_use_up_the_budget() -> None:
    """A good line cancels one bad line; with nine bad lines each, the second round ends the connection."""
    answers, outcome = feed([(b"\n" * 9 + b"TIME\r\n") * 100])
    assert outcome.end is Disconnect.ERROR_BUDGET
    assert (outcome.requests, answers.count(JAM)) == (12, 1)
    answers, outcome = feed([b"\nTIME\r\n" * 100])
    assert (outcome.end, outcome.requests, answers.count(JAM)) == (None, 200, 100)


def test_the_clock_is_read_once_for_a_batch() -> None:
    """The clock is read once for a batch, and not at all if no time is due."""
    asked: list[bytes] = []

    def jam() -> bytes:
        asked.append(b"")
        return JAM

    connection = Connection(RULES)
    connection.receive(b"HELLO\r\nTIM", jam)
    assert not asked
    connection.receive(b"E\r\nTIME\r\nTIME\r\n", jam)
    assert len(asked) == 1


def test_a_line_timeout_rejects_the_unfinished_line() -> None:
    """An overdue line gets an error line, and the connection is closed."""
    connection = Connection(RULES)
    connection.receive(b"TI", lambda: JAM)
    assert connection.midline
    outcome = connection.line_timeout()
    assert outcome.answers == [ERROR_LINES[Rejection.TIMEOUT]]
    assert outcome.rejected == [(Rejection.TIMEOUT, b"TI")]
    assert outcome.end is Disconnect.LINE_TIMEOUT
    assert not connection.midline


def test_a_drain_rejects_an_unfinished_line() -> None:
    """An unfinished line is counted as a request and rejected as `draining`."""
    connection = Connection(RULES)
    connection.receive(b"TI", lambda: JAM)
    outcome = connection.drain()
    assert outcome.answers == [ERROR_LINES[Rejection.DRAINING]]
    assert outcome.requests == 1
    assert outcome.end is Disconnect.DRAIN


def test_a_drain_between_lines_sends_nothing() -> None:
    """Between two lines, a drain only ends the connection."""
    outcome = Connection(RULES).drain()
    assert (outcome.answers, outcome.requests, outcome.end) == ([], 0, Disconnect.DRAIN)


@pytest.mark.parametrize(
    ("sent", "end"),
    [
        (b"HELLO\r\nTIME\r\n", Disconnect.REJECTED),
        (b"TIME\nTIME\r\n", Disconnect.REJECTED),
        (b"x" * 600, Disconnect.TOO_LONG),
    ],
)
def test_on_reject_close_closes_without_a_reply(sent: bytes, end: Disconnect) -> None:
    """With on_reject = close, the first bad line closes the connection without a reply."""
    answers, outcome = feed([sent], rules=Rules(reply_to_rejected=False))
    assert (answers, outcome.requests, outcome.end) == (b"", 1, end)


def test_a_lowered_error_budget_ends_the_connection_at_the_next_bad_line() -> None:
    """If a reload lowers the error budget below the errors so far, the next bad line is the last."""
    connection = Connection(Rules(error_budget=10))
    assert connection.receive(b"x\r\n" * 5, lambda: JAM).end is None
    connection.rules = Rules(error_budget=3)
    outcome = connection.receive(b"x\r\n" * 5, lambda: JAM)
    assert (outcome.requests, outcome.end) == (1, Disconnect.ERROR_BUDGET)


def test_zero_switches_limits_off() -> None:
    """0 switches the line limit and the error budget off."""
    answers, outcome = feed(
        [b"TIME" + b"x" * 100_000 + b"\r\n" + b"x\r\n" * 50],
        rules=Rules(max_line_bytes=0, error_budget=0),
    )
    assert answers.startswith(JAM)
    assert (outcome.requests, outcome.end) == (51, None)


@pytest.mark.parametrize("reason", Rejection)
def test_an_error_line_names_its_reason(reason: Rejection) -> None:
    """An error is one ASCII line with its reason, and with the limit if the line is too long."""
    line = RULES.error_line(reason)
    assert line.startswith(f"ERROR {reason}: ".encode())
    assert line.endswith(b"\r\n")
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert (b"512" in line) == (reason is Rejection.TOO_LONG)


@given(secret=st.binary(min_size=6, max_size=100))
def test_an_error_line_never_repeats_the_input(secret: bytes) -> None:
    """An error line is the same for every input."""
    answers, _ = feed([b"!" + secret.replace(b"\n", b"") + b"\r\n"])
    assert answers == ERROR_LINES[Rejection.BAD_COMMAND]
