"""When requests are due, and whose fault a delay is."""

from collections import deque
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triojam.load.measure.schedule import Schedule
from triojam.load.measure.tally import Tally
from triojam.load.plan import Plan


def schedule_of(began: float = 0.0, worker: int = 0, **plan: float) -> tuple[Schedule, Tally]:
    """Make a schedule and the tally into which it counts."""
    tally = Tally()
    return Schedule(Plan(**plan), began, tally, worker), tally  # type: ignore[arg-type]  # also whole numbers


def test_a_wait_for_the_server_belongs_to_the_latency() -> None:
    """While no connection is free, the latency of a request that is due grows."""
    schedule, tally = schedule_of(rate=1.0)
    assert schedule.take(3, 2.0, free=2.0) == [0.0, 1.0, 2.0]
    assert (tally.late, schedule.own_delay) == (0, 0.0)


def test_a_delay_by_the_client_does_not_belong_to_the_latency() -> None:
    """If a connection was free, a late request counts from when it was sent."""
    schedule, tally = schedule_of(rate=1.0)
    assert schedule.take(3, 2.0, free=0.0) == [2.0, 2.0, 2.0]
    assert (tally.late, tally.latest) == (2, 2.0)


def test_a_delay_is_divided_between_server_and_client() -> None:
    """Of three seconds, no connection was free in the first."""
    schedule, tally = schedule_of(rate=1.0)
    assert schedule.take(1, 3.0, free=1.0) == [2.0]
    assert tally.latest == schedule.own_delay == 2.0


def test_a_small_part_of_a_long_delay_is_not_the_clients() -> None:
    """The server has worked for other connections meanwhile."""
    schedule, tally = schedule_of(rate=1.0)
    assert schedule.take(1, 3.0, free=2.0) == [0.0]
    assert (tally.late, schedule.own_delay) == (0, 1.0)


@pytest.mark.parametrize(
    ("service", "own", "share"),
    [
        pytest.param(100e-6, 0.0, 1.0, id="no_time_of_the_client"),
        pytest.param(100e-6, 50e-6, 1.0, id="a_client_that_is_busy_half_of_the_time"),
        pytest.param(5e-6, 100e-6, 0.1, id="a_client_that_is_the_limit"),
    ],
)
def test_only_the_limit_is_blamed_for_a_backlog(service: float, own: float, share: float) -> None:
    """A server works for one request after the other; the client takes its own time to send each.

    The latencies are at least, or at most, this share of those from when the requests were due.
    """
    schedule, _ = schedule_of(rate=20_000.0, seconds=1.0)
    served = now = 0.0
    connections = deque((0.0, 0.0) for _ in range(20))  # when each is free, and would be without the delay
    measured = due = 0.0
    for number in range(10_000):
        arrived, free = connections.popleft()
        now = max(now + own, arrived, number / 20_000.0)
        (start,) = schedule.take(1, now, free)
        served = max(served, now) + service
        connections.append((served, served - schedule.own_delay))
        measured += served - start
        due += served - number / 20_000.0
    assert measured <= due + 1e-6
    assert (measured >= 0.98 * due) if share == 1.0 else (measured <= share * due)


def test_what_a_slow_client_has_left_at_the_end_is_left_out() -> None:
    """A duration ends on time: requests that the client was too slow to send are counted apart."""
    schedule, tally = schedule_of(rate=1000.0, seconds=2.0)
    assert len(schedule.take(500, 1.9)) == 500
    assert schedule.take(500, 2.01) == []
    assert (tally.left_out, tally.never_sent, tally.longer) == (1500, 0, {})
    assert schedule.over(2.01)


def test_a_duration_lasts_to_its_end() -> None:
    """Three requests, one a second, take three seconds; otherwise the rate would be too high."""
    schedule, _ = schedule_of(rate=1.0, seconds=3.0)
    assert len(schedule.take(9, 2.0, free=2.0)) == 3
    assert not schedule.over(2.5)
    assert schedule.over(3.0)


def test_all_of_a_number_of_requests_are_sent() -> None:
    """A number of requests is sent, however slow the client is."""
    schedule, tally = schedule_of(rate=1000.0, requests=100)
    assert len(schedule.take(500, 4.0)) == 100
    assert tally.left_out == 0


def test_what_the_server_has_delayed_is_sent_after_the_end() -> None:
    """Requests wait for a connection as long as the patience allows; then they count as never sent."""
    schedule, tally = schedule_of(rate=10.0, seconds=1.0, patience=3.0)
    assert schedule.take(4, 2.0, free=2.0) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert schedule.take(4, 4.0, free=4.0) == []
    schedule.give_up(4.0)
    assert (tally.left_out, tally.never_sent) == (0, 6)
    assert sorted(tally.longer) == pytest.approx([3.1e6, 3.2e6, 3.3e6, 3.4e6, 3.5e6, 3.6e6], abs=2)


def test_what_was_given_back_counts_from_its_first_time() -> None:
    """A request whose connection broke counts from when it was due, and is due at once."""
    schedule, _ = schedule_of(rate=10.0)
    taken = schedule.take(1, 0.0)
    schedule.give_back(taken)
    assert schedule.next_due(0.05) == 0.0
    assert schedule.take(2, 0.05) == [0.0]


def test_nothing_is_due_before_the_beginning() -> None:
    """The workers begin together."""
    for rate in (None, 10.0):
        schedule = Schedule(Plan(rate=rate), 5.0, Tally())
        assert schedule.take(3, 4.9) == []
        assert schedule.next_due(4.9) == 5.0


def test_a_ramp_changes_the_rate_evenly() -> None:
    """From 100 to 300 in 10 seconds: 2,000 requests, of which 750 in the first half."""
    schedule, _ = schedule_of(rate=100.0, last_rate=300.0, seconds=10.0)
    due = schedule.take(9999, 10.5, free=10.5)
    assert len(due) == 2000
    assert sum(each < 5.0 for each in due) == 750
    assert due[1] - due[0] == pytest.approx(1 / 100, rel=0.02)
    assert due[-1] - due[-2] == pytest.approx(1 / 300, rel=0.02)


def test_a_ramp_may_fall() -> None:
    """From 300 to 100, the first half has more requests."""
    schedule, _ = schedule_of(rate=300.0, last_rate=100.0, seconds=10.0)
    due = schedule.take(9999, 10.5, free=10.5)
    assert (len(due), sum(each < 5.0 for each in due)) == (2000, 1250)


def test_a_ramp_of_a_number_of_requests_ends_at_its_last_rate() -> None:
    """The duration follows from the number and the rates."""
    schedule, _ = schedule_of(rate=100.0, last_rate=300.0, requests=1000)
    assert schedule.ends == pytest.approx(5.0)


def test_the_warm_up_comes_before_the_duration() -> None:
    """It has the first rate, and its requests are not among the number that was asked for."""
    schedule, _ = schedule_of(rate=10.0, seconds=2.0, warm_up=1.0)
    assert schedule.measured_from == 1.0
    assert len(schedule.take(99, 3.5, free=3.5)) == 30
    closed, _ = schedule_of(requests=5, warm_up=1.0)
    assert len(closed.take(50, 0.5)) == 5
    assert len(closed.take(50, 1.5)) == 5
    assert closed.take(50, 1.6) == []


def test_a_late_request_of_the_warm_up_is_not_measured() -> None:
    """It was due in the warm-up, so it is not among the number that was asked for."""
    schedule, tally = schedule_of(rate=10.0, requests=5, warm_up=1.0)
    starts = schedule.take(99, 1.25, free=0.0)
    assert sum(start < schedule.measured_from for start in starts) == 10
    assert (len(starts), tally.late) == (13, 3)


@given(
    workers=st.integers(1, 5),
    rate=st.floats(0.5, 500),
    last_rate=st.none() | st.floats(0.5, 500),
    warm_up=st.sampled_from([0.0, 0.7]),
    requests=st.none() | st.integers(1, 300),
)
def test_the_workers_share_the_requests_of_one_schedule(
    workers: int, rate: float, last_rate: float | None, warm_up: float, requests: int | None
) -> None:
    """Together, the workers have the same requests due at the same times as one worker alone."""
    plan = {"rate": rate, "last_rate": last_rate, "warm_up": warm_up, "requests": requests, "seconds": 2.0}

    def due_of(worker: int, workers: int) -> list[float]:
        schedule = Schedule(Plan(**plan, workers=workers), 0.0, Tally(), worker)  # type: ignore[arg-type]
        return schedule.take(10_000, schedule.ends, free=schedule.ends)

    alone = due_of(0, 1)
    together = sorted(each for worker in range(workers) for each in due_of(worker, workers))
    assert together == pytest.approx(alone)
    assert alone == sorted(alone)


def test_a_stopped_schedule_counts_what_was_due_by_then() -> None:
    """After an interrupt, requests that were not due yet are not missing."""
    schedule, tally = schedule_of(rate=10.0, seconds=100.0)
    schedule.take(3, 0.25)
    schedule.stop(1.0)
    assert schedule.next_due(1.0) == inf
    schedule.give_up(1.0)
    assert tally.never_sent == 7
