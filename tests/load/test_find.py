"""The search of `load --find`: a load for each trial. In all tests but the last, the loads are replaced."""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import trio

from tests.helpers.bad_servers import start_bad, tells
from tests.helpers.servers import PATIENCE
from tests.load.result.results import answers, make
from triojam.client.session import Target
from triojam.load import find
from triojam.load.find import FindRun, judged
from triojam.load.plan import Plan
from triojam.load.progress import show_nothing
from triojam.load.result.goals import Goal
from triojam.load.result.result import Moment, Result
from triojam.load.search import Outcome

GOAL = Goal.parse("p50<5ms")
KNEE = 3000.0


class Trial:
    """Stands in for a load against a server that keeps the goal up to the rate KNEE."""

    begun: ClassVar[list[float]] = []
    # What is different in the trial with this number, counted from 1.
    change: ClassVar[Callable[[Any, int], None]]

    def __init__(self, _target: Target, plan: Plan, **_more: Any) -> None:
        self.plan = plan
        self.failure: str | None = None
        self.result: Result | None = None
        self.interrupted = False

    def interrupt(self) -> bool:
        """End early."""
        self.interrupted = True
        return True

    async def run(self, _show: object) -> None:
        """Make a result."""
        assert self.plan.rate is not None
        self.begun.append(self.plan.rate)
        sent = round(self.plan.rate * self.plan.seconds)
        tally = answers({1000 if self.plan.rate <= KNEE else 9000: sent})
        self.result = make(self.plan, tally=tally, seconds=self.plan.seconds)
        type(self).change(self, len(self.begun))
        await trio.lowlevel.checkpoint()


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> type[Trial]:
    """Replace the loads."""

    class Trials(Trial):
        begun: ClassVar[list[float]] = []
        change: ClassVar[Callable[[Any, int], None]] = lambda _trial, _number: None

    monkeypatch.setattr(find, "LoadRun", Trials)
    return Trials


def a_search(seconds: float = 40.0) -> FindRun:
    """Make a search whose trials last a twentieth of this time."""
    return FindRun(Target("a", 1), Plan(seconds=seconds), GOAL)


async def test_a_search_finds_the_knee(trials: type[Trial]) -> None:
    """The answer is the highest rate within the goal; a trial lasts its part of the duration."""
    job = a_search()
    await job.run(show_nothing)
    assert job.found is not None
    assert job.failure is None
    assert job.found.search.outcome is Outcome.FOUND
    assert job.found.search.answer is not None
    assert 0.9 * KNEE <= job.found.search.answer.rate <= KNEE
    assert (job.found.figure, job.found.limit, job.found.goal) == ("p50", 0.005, "p50<5ms")
    assert len(trials.begun) <= find.TRIALS


async def test_a_rate_without_enough_answers_is_not_tried(trials: type[Trial]) -> None:
    """A percentile needs a number of answers, so the lowest rate follows from the goal."""
    job = FindRun(Target("a", 1), Plan(seconds=2.0, rate=1.0), Goal.parse("p99<1ms"))
    await job.run(show_nothing)
    assert min(trials.begun) == 1000.0  # 100 answers in a tenth of a second


async def test_a_client_that_cannot_keep_up_is_no_evidence(trials: type[Trial]) -> None:
    """If the client leaves requests out, the rate says nothing about the server."""

    def left_out(trial: Trial, _number: int) -> None:
        assert trial.result is not None
        trial.result.tally.left_out = trial.result.tally.sent // 10

    trials.change = left_out
    job = a_search()
    await job.run(show_nothing)
    assert job.found is not None
    assert job.found.search.outcome is Outcome.CLIENT_LIMIT


async def test_requests_without_an_answer_break_a_rate(trials: type[Trial]) -> None:
    """The latencies of the others may look good."""

    def failed(trial: Trial, _number: int) -> None:
        assert trial.result is not None
        if trial.plan.rate is not None and trial.plan.rate > 500:
            failures = trial.result.tally.answered // 2
            trial.result.tally.answered -= failures
            trial.result.tally.failed = Counter(closed=failures)

    trials.change = failed
    job = a_search()
    await job.run(show_nothing)
    assert job.found is not None
    assert job.found.search.answer is not None
    assert job.found.search.answer.rate <= 500


async def test_an_interrupted_search_has_what_it_found(trials: type[Trial]) -> None:
    """After Ctrl-C, the trials that have ended count; the one under way does not."""
    job = a_search()

    def interrupt(trial: Trial, number: int) -> None:
        if number == 3:
            assert job.interrupt()
            assert trial.result is not None
            trial.result.interrupted = True

    trials.change = interrupt
    await job.run(show_nothing)
    assert job.found is not None
    assert job.found.interrupted
    assert len(job.found.search.trials) == 2


@pytest.mark.parametrize("ended", [1, 3])
async def test_a_server_that_ends_does_not_lose_the_earlier_trials(trials: type[Trial], ended: int) -> None:
    """The reason is told, and what was found before, if anything."""

    def fail(trial: Trial, number: int) -> None:
        if number == ended:
            trial.failure, trial.result = "a:1: connection refused", None

    trials.change = fail
    job = a_search()
    await job.run(show_nothing)
    assert job.failure == "a:1: connection refused"
    assert len(trials.begun) == ended
    if ended == 1:
        assert job.found is None
    else:
        assert job.found is not None
        assert len(job.found.search.trials) == 2


async def test_a_search_runs_real_loads(nursery: trio.Nursery) -> None:
    """Each trial has its rate, and its progress is shown; an interrupt ends the search."""
    address = await start_bad(nursery, tells(lambda: 0.0))
    job = FindRun(Target(*address), Plan(seconds=4.0, patience=PATIENCE), GOAL, tick=0.05)
    rates: list[float | None] = []

    def show(plan: Plan, before: Moment, _now: Moment) -> None:
        if before.seconds == 0:
            rates.append(plan.rate)
        if len(rates) == 2:
            job.interrupt()

    with trio.fail_after(PATIENCE * 2):
        await job.run(show)
    assert job.found is not None
    assert job.found.interrupted
    assert [trial.rate for trial in job.found.search.trials] == rates[:1] == [1000.0]


@pytest.mark.parametrize(
    ("latency", "late", "left_out", "held", "client_limited"),
    [
        (0.002, 0, 0, True, False),
        (0.002, 90, 0, True, False),
        (0.009, 90, 0, False, True),
        (0.009, 20, 0, False, False),
        (0.002, 0, 2, True, False),
        (0.002, 0, 3, False, True),
    ],
)
def test_a_late_client_excuses_a_goal_that_was_missed_only(
    latency: float, late: int, left_out: int, *, held: bool, client_limited: bool
) -> None:
    """A server that answers late requests within the goal can do it: they come in bursts."""
    tally = answers({round(latency * 1e6): 100}, late=late, left_out=left_out)
    trial = judged(make(Plan(rate=100.0), tally=tally), GOAL, 100.0, 1.0)
    assert (trial.held, trial.client_limited) == (held, client_limited)
