"""The tasks that watch the process from inside, with a mock clock."""

import trio
from trio.testing import MockClock

from tests.helpers.servers import Events
from triojam.core.counters import Counters
from triojam.core.reasons import Rejection
from triojam.process.watchers import (
    CLOCK_INTERVAL,
    CROWD,
    LAG_INTERVAL,
    TRIM_INTERVAL,
    give_back_memory,
    report_traffic,
    trim_heap,
    watch_clock,
    watch_lag,
)


async def test_a_step_of_the_clock_is_counted(autojump_clock: MockClock) -> None:
    """A step of the wall clock by more than half a second is counted once; a smaller one is not."""
    counters = Counters()
    offset = [0.0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_clock, counters, lambda: trio.current_time() + offset[0])
        for step, steps in ((0.0, 0), (3600.0, 1), (0.0, 1), (-3600.0, 2), (0.4, 2)):
            offset[0] += step
            await trio.sleep(2 * CLOCK_INTERVAL)
            assert counters.clock_steps == steps
        nursery.cancel_scope.cancel()


async def test_the_lag_of_the_loop_is_observed(mock_clock: MockClock) -> None:
    """If the task wakes late, the histogram has the delay."""
    counters = Counters()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_lag, counters)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(LAG_INTERVAL + 0.3)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert counters.loop_lag.count == 1
    assert 0.29 < counters.loop_lag.sum < 0.31


async def test_traffic_is_logged_while_there_is_some(autojump_clock: MockClock) -> None:
    """The totals, and what came since the last line, are logged every ten seconds, if they have changed."""
    counters, events = Counters(), Events()
    log = events.make_logger("info")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(report_traffic, counters, lambda: log)
        await trio.sleep(60)
        assert not events
        counters.requests = counters.responses = 5
        await trio.sleep(60)
        (event,) = events
        assert event["event"] == "traffic"
        assert (event["requests"], event["responses"], event["rejected"]) == (5, 5, 0)
        counters.requests, counters.rejected[Rejection.TIMEOUT] = 8, 3
        await trio.sleep(60)
        (_, event) = events
        assert (event["requests"], event["new_requests"], event["new_rejected"]) == (8, 3, 3)
        said = "traffic: 3 requests in 10 s (3 rejected, 0 send errors), 8 in all; 0 connections open"
        assert event["sentence"] == said
        nursery.cancel_scope.cancel()


async def test_accept_errors_make_one_warning_per_interval(autojump_clock: MockClock) -> None:
    """Accept errors make one warning per interval, with their number."""
    counters, events = Counters(), Events()
    log = events.make_logger("info")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(report_traffic, counters, lambda: log)
        await trio.sleep(1)
        for error in counters.accept_errors:
            counters.accept_errors[error] += 100
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert [(each["event"], each["errors"]) for each in events] == [("accepting failed", 400)]


async def test_the_heap_is_trimmed_when_a_crowd_has_left(autojump_clock: MockClock) -> None:
    """The heap is trimmed once for each crowd that leaves, and never otherwise."""
    counters = Counters()
    trimmed: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_back_memory, counters, lambda: trimmed.append(counters.connections_open))
        for connections in (CROWD - 1, 0, 10 * CROWD, 10 * CROWD, 9 * CROWD + 1, 9 * CROWD, 9 * CROWD, 0, 0):
            counters.connections_open = connections
            await trio.sleep(TRIM_INTERVAL)
        nursery.cancel_scope.cancel()
    assert trimmed == [9 * CROWD, 0]


def test_the_heap_can_be_trimmed() -> None:
    """With any C library, trimming raises no error."""
    trim_heap()
