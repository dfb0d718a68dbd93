"""Which of several servers is wrong: the intersection of their ranges."""

import random

import pytest

import triojam
from triojam.client.render import describe
from triojam.client.session import Target
from triojam.client.verdicts.agreement import judge
from triojam.client.watch import Watched, summary, table


def answer(offset: float, bound: float = 0.5) -> triojam.Answer:
    """Make an answer with this offset."""
    return triojam.Answer("12:34:56", offset, bound, 0.001, "192.0.2.1:45000")


def named(count: int) -> list[Target]:
    """Make targets with the names a, b, c and so on."""
    return [Target(name) for name in "abcdefg"[:count]]


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ((0.0, 0.125, -0.125), "all 3 servers agree: +0.00 s ± 0.38 s"),
        ((0.0, 0.25, 3.0), "2 of 3 servers agree; c:45000 is wrong by +2.88 s ± 0.88 s"),
        ((-3.0, 0.0, 0.25), "2 of 3 servers agree; a:45000 is wrong by -3.12 s ± 0.88 s"),
        (
            (0.0, 0.0, 0.0, 7.0, -7.0),
            "3 of 5 servers agree; d:45000 is wrong by +7.0 s ± 1.0 s; e:45000 is wrong by -7.0 s ± 1.0 s",
        ),
        ((0.0, 0.0, 5.0, 5.0), "a tie: a:45000, b:45000 agree, and c:45000, d:45000 agree; no majority"),
        ((0.0, 5.0, 10.0), "a tie: no two of the 3 servers agree"),
        ((0.0, 0.0, 5.0, 10.0), "no majority: 2 of 4 servers agree: a:45000, b:45000"),
        (
            (-43_199.875, 43_199.875, 100.0),
            "2 of 3 servers agree; c:45000 is wrong by -43100.00 s ± 0.88 s",
        ),
        ((0.0, 0.875, -0.875), "a tie: a:45000, b:45000 agree, and a:45000, c:45000 agree; no majority"),
    ],
)
def test_the_wrong_server_is_named(offsets: tuple[float, ...], said: str) -> None:
    """A minority is named with its distance from the others; a tie is called a tie."""
    verdict = judge([answer(each) for each in offsets])
    assert verdict is not None
    assert describe(named(len(offsets)), verdict) == said


@pytest.mark.parametrize("outcomes", [[], [answer(0), answer(9)], [answer(0), None, answer(9)]])
def test_two_answers_are_no_majority(outcomes: list[triojam.Answer | None]) -> None:
    """With fewer than three answers, nothing is said."""
    assert judge(outcomes) is None


def test_servers_that_did_not_answer_are_left_out() -> None:
    """Places are those of all servers, also behind one without an answer."""
    verdict = judge([answer(0), triojam.SilentError("x"), answer(0), answer(9)])
    assert verdict is not None
    assert (verdict.agree, set(verdict.off)) == ((0, 2), {3})


def test_a_right_majority_is_never_called_wrong() -> None:
    """If most of the ranges hold the truth, a server outside of the verdict's majority is really wrong."""
    for seed in range(500):
        chance = random.Random(seed)
        right = chance.randint(3, 6)
        answers = []
        for _ in range(right):
            bound = chance.uniform(0.0001, 0.7)
            answers.append(answer(chance.uniform(-bound, bound), bound))
        wrong = [answer(chance.choice((-1, 1)) * chance.uniform(2, 90), 0.5) for _ in range(right - 1)]
        verdict = judge([*answers, *wrong])
        assert verdict is not None
        assert verdict.agree == tuple(range(right))
        assert set(verdict.off) == set(range(right, 2 * right - 1))
        for place, (off, bound) in verdict.off.items():
            assert abs(off - wrong[place - right].offset) <= bound


def test_watch_marks_the_wrong_server() -> None:
    """The table marks the server that is wrong, and the summary names it."""
    servers = [Watched(each) for each in named(3)]
    for server, offset in zip(servers, (0.0, 0.1, 4.0), strict=True):
        server.add(answer(offset), "12:34:56")
    offsets = [str(each) for each in table(servers, 200).columns[2].cells]
    assert [each.endswith(", wrong") for each in offsets] == [False, False, True]
    assert summary(servers).splitlines()[-1].startswith("2 of 3 servers agree; c:45000 is wrong by +3.95 s")
