"""Goals: what they may say, and which results break them."""

from collections import Counter
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.result.results import answers, make
from triojam.load.measure.tally import Tally
from triojam.load.plan import Plan
from triojam.load.result.goals import GOAL_TAKES, Goal, broken

# 100 of 1 ms, and of 7.31 ms those above the percentile 99.
SAMPLE = {1000: 990, 7310: 10}
UNANSWERED = {"longer": {5_000_000: 20}}


def lines(goal: str, latencies: dict[int, int] | None = None, **tally: Any) -> list[str]:
    """Return what a result of ten seconds says about a goal."""
    result = make(tally=answers(SAMPLE if latencies is None else latencies, **tally))
    return broken([Goal.parse(goal)], result)


@pytest.mark.parametrize(
    "goal",
    [
        "p99<5ms", "p99 <= 1ms", "p99<=1000us", "p99<=1000µs", "p99<=1000μs", "p99<=0.001s", "p99>=1ms",
        " p50 > 0.999 ms ", "p99.9<7.3101ms", "longest<=7.31ms", "mean<2ms", "failed<1", "failed<=0%",
        "failed<0.1%", "rate>99.9", "rate<=100", "answered>=1000", "answered<1001",
    ],
)  # fmt: skip
def test_a_goal_that_is_reached_says_nothing(goal: str) -> None:
    """Every quantity, comparison and unit; a limit counts exactly."""
    assert lines(goal) == []


@pytest.mark.parametrize(
    ("goal", "tally", "line"),
    [
        ("p99.1<5ms", {}, "p99.1<5ms: it was 7.31 ms"),
        ("p99<1ms", {}, "p99<1ms: it was 1 ms"),
        ("p99>1ms", {}, "p99>1ms: it was 1 ms"),
        ("p99.9<500µs", {}, "p99.9<500µs: it was 7,310 µs"),
        ("longest<0.007s", {}, "longest<0.007s: it was 0.00731 s"),
        ("mean<1ms", {}, "mean<1ms: it was 1.0631 ms"),
        ("p99<5ms", UNANSWERED, "p99<5ms: it was > 5,000 ms"),
        ("longest<10s", UNANSWERED, "longest<10s: it was > 5 s"),
        ("longest>10s", UNANSWERED, "longest>10s: it was > 5 s"),
        ("mean<1s", UNANSWERED, "mean<1s: it was > 0.099081 s"),
        (
            "p99.99<5ms",
            {},
            "p99.99<5ms: it needs at least 10,000 measured requests, there were 1,000",
        ),
        ("p50<1ms", {"latencies": {}}, "p50<1ms: no request was measured"),
        ("failed<1", {"failed": Counter(reset=1, closed=2)}, "failed<1: it was 3"),
        ("failed\n< 1", {"never_sent": 4}, "failed<1: it was 4"),
        ("failed<0.1%", {"failed": Counter(reset=1), "sent": 1000}, "failed<0.1%: it was 0.1 % (1 of 1,000)"),
        (
            "failed<1%",
            {"failed": Counter(reset=7), "never_sent": 9, "sent": 1000},
            "failed<1%: it was 1.59 % (16 of 1,009)",
        ),
        ("rate>1000", {}, "rate>1000: it was 100"),
        ("rate>=100", {"warmed_up": 1}, "rate>=100: it was 99.9"),
        ("rate>100", {"warmed_up": 7}, "rate>100: it was 99.3"),
        ("answered>=1001", {}, "answered>=1001: it was 1,000"),
    ],
)
def test_a_broken_goal_says_what_it_was(goal: str, tally: dict[str, Any], line: str) -> None:
    """A lower bound breaks a goal that it does not prove; a percentile that is not carried does, too."""
    assert lines(goal, **tally) == [line]


@pytest.mark.parametrize(
    ("goal", "tally", "limit", "figure", "shown"),
    [
        ("p99.1<5ms", {}, 0.005, 0.00731, "7.31 ms"),
        ("mean<1s", {}, 1, 0.0010631, "1.06 ms"),
        ("p99.99<5ms", {}, 0.005, inf, None),
        ("p99<5us", UNANSWERED, 5e-6, inf, None),
        ("failed<0.5%", {"failed": Counter(reset=10), "sent": 1000}, 0.5, 1, "1 %"),
        ("failed<1", {"never_sent": 1234}, 1, 1234, "1,234"),
        ("rate>50", {}, 50, 100, "100"),
    ],
)
def test_a_goal_has_a_figure_to_draw(
    goal: str, tally: dict[str, Any], limit: float, figure: float, shown: str | None
) -> None:
    """Latencies are in seconds, and infinite if they are not known."""
    parsed = Goal.parse(goal)
    assert parsed.highest == pytest.approx(limit)
    found = parsed.figure(make(tally=answers(SAMPLE, **tally)))
    assert found == pytest.approx(figure)
    assert shown is None or parsed.shown(found) == shown


def test_a_lower_bound_can_prove_that_a_latency_is_longer() -> None:
    """At least 5 s is more than 4 s."""
    assert lines("longest>4s", **UNANSWERED) == []


def test_requests_that_the_client_left_out_have_not_failed() -> None:
    """The server is not blamed for the limits of the client."""
    assert lines("failed<1", left_out=5, late=7, latest=1.0) == []


def test_a_load_that_sent_nothing_breaks_goals_of_failures() -> None:
    """Without a request, none failed; that is not a success."""
    nothing = make(tally=Tally(unconnected=Counter(refused=3)))
    goals = [Goal.parse(each) for each in ("failed<1", "failed<1%", "rate>0")]
    assert broken(goals, nothing) == [
        "failed<1: no request was sent",
        "failed<1%: no request was sent",
        "rate>0: it was 0",
    ]


@pytest.mark.parametrize(
    "goal",
    [
        "", "p99", "p99<", "<5ms", "p99<5", "p99<5%", "p99<5m", "p99<-5ms", "p99=5ms", "p99<5ms<6ms",
        "p100<5ms", "p<5ms", "p999<5ms", "failed<5ms", "rate<5%", "answered>5%", "longest<5", "mean<5",
        "median<5ms", "p99<1e5ms", "p99<nanms", "p99<٣ms", "P99<5ms", "p99<5ms\0", "rate>" + "9" * 5000,
    ],
)  # fmt: skip
def test_a_wrong_goal_says_what_it_takes(goal: str) -> None:
    """Also a unit that does not fit the quantity."""
    with pytest.raises(ValueError, match=GOAL_TAKES.split(";")[0]):
        Goal.parse(goal)


@given(st.text() | st.from_regex(r"\A(p\d+(\.\d+)?|failed|rate)[<>]=?\d+(\.\d+)?(ms|s|%)?\Z"))
def test_any_text_is_a_goal_or_a_value_error(text: str) -> None:
    """What parses can be judged."""
    try:
        goal = Goal.parse(text)
    except ValueError:
        return
    for line in broken([goal], make(Plan(), tally=answers(SAMPLE))):
        assert line.startswith(f"{goal.text}: it ")
