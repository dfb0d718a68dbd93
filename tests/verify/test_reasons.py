"""The reason of a verdict: a silent server and each kind of wrong answer are told apart."""

import pytest
import trio

from tests.helpers.bad_servers import Behaviour, closes_at_once, reset, says, silent, start_bad
from tests.verify.judging import PATIENCE
from triojam.client.session import Target
from triojam.verify.judge import Finding, Verdict, judge
from triojam.verify.rules import RULES
from triojam.verify.subject import Subject


async def resets_after_a_request(stream: trio.abc.Stream) -> None:
    """Read a request, and reset."""
    assert isinstance(stream, trio.SocketStream)
    await stream.receive_some()
    reset(stream)


async def judge_behaviour(
    nursery: trio.Nursery, behaviour: Behaviour, names: set[str], *, patience: float = PATIENCE
) -> list[Finding]:
    """Judge a server with this behaviour by some rules."""
    address = await start_bad(nursery, behaviour)
    rules = [rule for rule in RULES if rule.name in names]
    return await judge(Subject(Target(*address), patience=patience), rules)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (closes_at_once, "the server closed the connection without an answer"),
        (resets_after_a_request, "the server reset the connection without an answer"),
        (silent, "no answer came"),
        (says(b"JAM"), "only a part of an answer came, 'JAM'"),
        (says(b"12:34:56\r\n"), r"answered with something else: '12:34:56'"),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "speaks HTTP, not TIME: is it the metrics port?"),
        (says(b"\x15\x03\x03\x00\x02\x02\x16"), "speaks TLS: try it with --tls"),
        (says(b"ERROR busy: too many connections\r\n"), "answered with 'ERROR busy: too many connections'"),
        (says("JAM 12:34:56\r\n".encode("utf-16"), then_closes=True), "answered with something else"),
    ],
)
async def test_no_time_is_explained(nursery: trio.Nursery, behaviour: Behaviour, reason: str) -> None:
    """The rule of the answer says what came in its place; all other rules depend on it."""
    _, answer, exact = await judge_behaviour(
        nursery, behaviour, {"port", "answer", "exact-answer"}, patience=0.5
    )
    assert (answer.verdict, exact.reason) == (Verdict.FAILS, "depends on answer")
    assert answer.reason.startswith(reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"JAM 12:34:56\n", r"the time is followed by '\n', not by CR LF alone"),
        (b"JAM 12:34:56\n\r", r"the time is followed by '\n\r', not by CR LF alone"),
        (b"JAM 12:34:56 \r\n", r"the time is followed by ' \r\n', not by CR LF alone"),
        (b"JAM 12:34:56 PM\r\n", r"the time is followed by ' PM\r\n', not by CR LF alone"),
        (b"JAM 12:34:56\r\nbye\r\n", r"the time is followed by '\r\nbye\r\n', not by CR LF alone"),
        (b"JAM 12:34:56", "no CR LF follows the time"),
        (b"JAM 9:04:05\r\n", "'JAM 9:04:05' is not of the form JAM hh:mm:ss, with hours from 00 to 23"),
        (b"JAM 24:00:00\r\n", "'JAM 24:00:00' is not of the form JAM hh:mm:ss, with hours from 00 to 23"),
        (b"jam 12:34:56\r\n", "'jam 12:34:56' is not of the form JAM hh:mm:ss, with hours from 00 to 23"),
        (b"JAM: 12.34.56\r\n", "'JAM: 12.34.56' is not of the form JAM hh:mm:ss, with hours from 00 to 23"),
        (b"\xef\xbb\xbfJAM 12:34:56\r\n", r"bytes stand before the time: '\xef\xbb\xbf'"),
        (b"Hello!\r\nJAM 12:34:56\r\n", r"bytes stand before the time: 'Hello!\r\n'"),
    ],
)
async def test_a_wrong_form_is_explained(nursery: trio.Nursery, answer: bytes, reason: str) -> None:
    """A time in a wrong form is an answer; the rule of the exact bytes says which byte is wrong."""
    _, came, exact = await judge_behaviour(
        nursery, says(answer), {"port", "answer", "exact-answer"}, patience=2
    )
    assert (came.verdict, exact.verdict) == (Verdict.HOLDS, Verdict.FAILS)
    assert exact.reason == reason


async def test_a_server_may_be_slow(nursery: trio.Nursery) -> None:
    """A server that answers after a fifth of the patience holds; nothing depends on its speed."""

    async def slow(stream: trio.abc.Stream) -> None:
        async for data in stream:
            if data != b"TIME\r\n":
                return
            await trio.sleep(0.4)
            await stream.send_all(b"JAM 12:34:56\r\n")

    names = {"port", "answer", "exact-answer", "concurrent", "half-close", "resets"}
    findings = await judge_behaviour(nursery, slow, names, patience=2)
    assert [each.reason for each in findings if each.verdict is not Verdict.HOLDS] == []


async def test_a_batch_of_times_must_not_go_backwards(nursery: trio.Nursery) -> None:
    """Midnight may come once in a batch; a time that goes backwards twice is wrong."""
    midnight = b"JAM 23:59:59\r\n" * 500 + b"JAM 00:00:00\r\n" * 500
    names = {"port", "answer", "concurrent", "strict-batch"}
    *_, held = await judge_behaviour(nursery, answers_a_batch_with(midnight), names, patience=2)
    assert held.reason == ""
    backwards = (b"JAM 00:00:05\r\n" + b"JAM 00:00:04\r\n") * 500
    *_, broken = await judge_behaviour(nursery, answers_a_batch_with(backwards), names, patience=2)
    assert broken.reason == "the times of one batch go backwards"


def answers_a_batch_with(answers: bytes) -> Behaviour:
    """Make a server that answers one request with a time, and a batch with these answers."""

    async def behave(stream: trio.abc.Stream) -> None:
        received = b""
        async for data in stream:
            received += data
            if received == b"TIME\r\n":
                await stream.send_all(b"JAM 12:34:56\r\n")
            elif len(received) == 6000:
                await stream.send_all(answers)

    return behave
