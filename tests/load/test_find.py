"""The search of `load --find`, with real loads against a server with a known limit."""

import time
from collections.abc import Callable

import pytest
import trio

from tests.helpers.bad_servers import JAM, Behaviour, start_bad
from tests.helpers.servers import PATIENCE
from tests.load.result.results import answers, make
from triojam.client.session import Target
from triojam.load.find import FindRun, judged
from triojam.load.plan import Plan
from triojam.load.progress import show_nothing
from triojam.load.result.goals import Goal
from triojam.load.result.result import Moment

GOAL = Goal.parse("p50<50ms")


def one_at_a_time(seconds: float) -> Behaviour:
    """Make a server that needs this long for each answer, and gives only one at a time."""
    lock = trio.Lock()

    async def behave(stream: trio.abc.Stream) -> None:
        async for data in stream:
            async with lock:
                await trio.sleep(seconds * data.count(b"\n"))
            now = time.localtime()
            await stream.send_all(JAM % (now.tm_hour, now.tm_min, now.tm_sec) * data.count(b"\n"))

    return behave


async def find(address: tuple[str, int], ended: Callable[[int], bool] = lambda _trials: False) -> FindRun:
    """Run a search with short trials; interrupt it when `ended` says so."""
    job = FindRun(Target(*address), Plan(seconds=4.0, rate=20.0, patience=PATIENCE), GOAL, tick=0.05)
    begun = 0

    def show(_plan: Plan, before: Moment, _now: Moment) -> None:
        nonlocal begun
        begun += before.seconds == 0
        if ended(begun):
            job.interrupt()

    with trio.fail_after(PATIENCE * 2):
        await job.run(show)
    return job


async def test_a_search_finds_the_limit_of_a_server(nursery: trio.Nursery) -> None:
    """A rate far above what the server can do breaks the goal; a rate far below does not."""
    job = await find(await start_bad(nursery, one_at_a_time(0.005)))
    assert job.found is not None
    assert job.failure is None
    trials = job.found.search.trials
    assert 0 < len(trials) <= 20
    assert not any(trial.held for trial in trials if trial.rate > 1000)
    assert any(trial.held for trial in trials)
    assert job.found.limit == 0.05


async def test_an_interrupted_search_has_what_it_found(nursery: trio.Nursery) -> None:
    """After Ctrl-C, the trials that have ended count."""
    job = await find(await start_bad(nursery, one_at_a_time(0.0)), ended=lambda trials: trials == 3)
    assert job.found is not None
    assert job.found.interrupted
    assert 0 < len(job.found.search.trials) < 20


async def test_a_search_without_a_server_says_why() -> None:
    """There is nothing to show, only the reason."""
    (free,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = free.socket.getsockname()
    await free.aclose()
    job = FindRun(Target(host, port), Plan(seconds=4.0, patience=1.0), GOAL)
    await job.run(show_nothing)
    assert job.found is None
    assert job.failure == f"127.0.0.1:{port}: connection refused"


async def test_a_search_whose_server_ends_shows_what_is_known(nursery: trio.Nursery) -> None:
    """The failure of a later trial does not lose the earlier ones."""
    async with trio.open_nursery() as serving:
        address = await start_bad(serving, one_at_a_time(0.0))

        job = FindRun(Target(*address), Plan(seconds=4.0, rate=20.0, patience=1.0), GOAL, tick=0.05)
        begun = 0

        def show(_plan: Plan, before: Moment, _now: Moment) -> None:
            nonlocal begun
            begun += before.seconds == 0
            if begun == 3:
                serving.cancel_scope.cancel()

        with trio.CancelScope(shield=True), trio.fail_after(PATIENCE * 2):
            await job.run(show)
    assert job.found is not None
    assert len(job.found.search.trials) >= 2
    assert job.failure is not None


@pytest.mark.parametrize(
    ("latency", "late", "left_out", "held", "client_limited"),
    [
        (0.02, 0, 0, True, False),
        (0.02, 90, 0, True, False),
        (0.09, 90, 0, False, True),
        (0.09, 20, 0, False, False),
        (0.02, 0, 2, True, False),
        (0.02, 0, 3, False, True),
    ],
)
def test_a_late_client_excuses_a_goal_that_was_missed_only(
    latency: float, late: int, left_out: int, *, held: bool, client_limited: bool
) -> None:
    """A server that answers late requests within the goal can do it: they come in bursts."""
    tally = answers({round(latency * 1e6): 100}, late=late, left_out=left_out)
    trial = judged(make(Plan(rate=100.0), tally=tally), GOAL, 100.0, 1.0)
    assert (trial.held, trial.client_limited) == (held, client_limited)
