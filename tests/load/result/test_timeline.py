"""The parts of a load: rates that were due and reached, and the line of progress."""

import pytest

from tests.load.result.results import timeline
from triojam.load.plan import Plan
from triojam.load.progress import fitting
from triojam.load.result.result import Moment
from triojam.load.result.timeline import line_of, parts, rate_due


def test_a_part_lasts_from_one_moment_to_the_next() -> None:
    """The first part begins at the start; a moment without a duration is no part."""
    first, second, third = timeline((0.5, 10, 0), (1.0, 30, 1), (1.0, 30, 1))
    start = Moment(0.0, 0, 0)
    assert parts([first, second, third]) == parts([start, first, second]) == [(start, first), (first, second)]
    assert parts([]) == []


@pytest.mark.parametrize(
    ("plan", "start", "end", "rate"),
    [
        (Plan(), 0, 1, None),
        (Plan(rate=50.0), 2, 3, 50),
        (Plan(rate=50.0), 9.5, 10.5, 25),
        (Plan(rate=50.0), 10, 11, 0),
        (Plan(rate=50.0, requests=25), 0, 1, 25),
        (Plan(rate=50.0, requests=10_000), 20, 21, 50),
        (Plan(rate=10.0, last_rate=110.0), 0, 10, 60),
        (Plan(rate=10.0, last_rate=110.0), 0, 1, 15),
        (Plan(rate=10.0, last_rate=110.0), 9, 10, 105),
        (Plan(rate=110.0, last_rate=10.0), 9, 10, 15),
        (Plan(rate=10.0, last_rate=110.0, warm_up=2.0), 0, 2, 10),
        (Plan(rate=10.0, last_rate=110.0, warm_up=2.0), 2, 3, 15),
        (Plan(rate=10.0, last_rate=110.0, warm_up=2.0), 12, 13, 0),
        (Plan(rate=10.0, last_rate=110.0, requests=120), 0, 2, 60),
        (Plan(rate=10.0, requests=20, warm_up=1.0), 0, 4, 7.5),
    ],
)
def test_the_rate_due_follows_the_plan(plan: Plan, start: float, end: float, rate: float | None) -> None:
    """A ramp is even, after the warm-up; after the end, nothing is due."""
    due = rate_due(plan, Moment(start, 0, 0), Moment(end, 0, 0))
    assert due == (None if rate is None else pytest.approx(rate))


@pytest.mark.parametrize(
    ("plan", "before", "now", "line"),
    [
        (
            Plan(), (11, 100, 0), (12, 5098, 0),
            "12 s  4,998/s  0 failed  p50 40 µs  p99 1.1 ms  longest 500 ms",
        ),
        (
            Plan(), (0.5, 100, 5), (1.04, 101, 7),
            "1 s  1.85/s  7 failed so far  p50 40 µs  p99 1.1 ms  longest 500 ms",
        ),
        (Plan(), (11, 100, 3), (12, 100, 3), "12 s  0/s  3 failed so far"),
        (
            Plan(rate=10.0, last_rate=110.0), (9, 100, 0), (10, 150, 0),
            "10 s  50/s of 105/s due  0 failed  p50 40 µs  p99 1.1 ms  longest 500 ms",
        ),
        (
            Plan(rate=60.0), (9, 100, 0), (10, 150, 0),
            "10 s  50/s of 60/s due  0 failed  p50 40 µs  p99 1.1 ms  longest 500 ms",
        ),
        (
            Plan(warm_up=2.0), (0, 0, 0), (0.5, 1, 0),
            "0.5 s  2/s  0 failed  p50 40 µs  p99 1.1 ms  longest 500 ms  warm-up",
        ),
    ],
)  # fmt: skip
def test_a_line_describes_a_part(
    plan: Plan, before: tuple[float, int, int], now: tuple[float, int, int], line: str
) -> None:
    """Without an answer, a part has no latencies; an open loop shows the rate due, too."""
    earlier, later = timeline(before, now)
    assert line_of(earlier, later, plan) == line


def test_a_part_of_the_warm_up_has_no_latencies() -> None:
    """Its answers are counted, but their latencies are not measured."""
    line = line_of(Moment(0.0, 0, 0), Moment(1.0, 500, 0), Plan(warm_up=2.0))
    assert line == "1 s  500/s  0 failed  warm-up"


@pytest.mark.parametrize(
    ("width", "fitted"),
    [(99, "0.3 s  1,252/s  0 failed  p50 112 µs"), (30, "0.3 s  1,252/s  0 failed"), (3, "0.3 s")],
)
def test_a_narrow_line_has_whole_figures(width: int, fitted: str) -> None:
    """The last figures are left out; none is cut."""
    assert fitting("0.3 s  1,252/s  0 failed  p50 112 µs", width) == fitted
