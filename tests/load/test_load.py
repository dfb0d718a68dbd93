"""The load generator against good and bad servers: every request is counted once, every answer is checked."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from math import inf
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.bad_servers import (
    Behaviour,
    closes_at_once,
    reset,
    resets_at_once,
    says,
    silent,
    start_bad,
    tells,
)
from tests.helpers.servers import JAM, NOW, PATIENCE, start_lane, start_tcp, until
from tests.load.running import address_of, make_load, run, run_beside, slower_than, tally_of
from triojam.client.time_of_day import DAY
from triojam.load.measure.checker import AnswerChecker, Records
from triojam.load.measure.clock import ServerClock
from triojam.load.measure.connection import Connection
from triojam.load.measure.schedule import Schedule
from triojam.load.measure.tally import Tally
from triojam.load.plan import Kind, Mix, Plan
from triojam.load.result.percentiles import Percentiles

MIX = Mix.parse("TIME:8,TIME please:1,HELLO:3,split:2")


PLANS: dict[str, dict[str, Any]] = {
    "closed": {"requests": 1000},
    "pipelined": {"requests": 5000, "pipeline": 16},
    "deep": {"requests": 200_000, "pipeline": 100_000, "connections": 2},
    "visits": {"requests": 300, "visits": True},
    "visits, pipelined": {"requests": 300, "visits": True, "pipeline": 3},
    "mixed": {"requests": 1000, "mix": MIX},
    "mixed and pipelined": {"requests": 3000, "mix": MIX, "pipeline": 7},
    "mixed visits": {"requests": 300, "mix": MIX, "visits": True},
    "open loop": {"requests": 300, "rate": 3000.0},
    "open loop, mixed": {"requests": 300, "rate": 3000.0, "mix": MIX, "pipeline": 4},
    "thinking": {"requests": 50, "think_time": 0.005},
    "timed": {"seconds": 0.2},
    "fewer requests than connections": {"requests": 2},
}


@pytest.mark.parametrize("lane", [False, True])
@pytest.mark.parametrize("name", PLANS)
async def test_the_load_balances_with_the_server(nursery: trio.Nursery, name: str, *, lane: bool) -> None:
    """The client and the server count the same requests, answers and rejections."""
    server = await (start_lane if lane else start_tcp)(nursery)
    plan = PLANS[name]
    tally, counters = (await run(address_of(server), **plan)).tally, server.counters
    assert not any((tally.failed, tally.unconnected, tally.unasked))
    assert tally.sent == plan.get("requests", tally.sent) > 0
    await until(lambda: counters.connections_open == 0)
    assert (tally.sent, tally.answered, tally.rejected) == (
        counters.requests,
        counters.responses,
        sum(counters.rejected.values()),
    )
    assert (tally.rejected > 0) == ("mixed" in name)
    assert tally.opened == counters.connections
    if "visits" in name:
        assert tally.opened >= 100


BAD: list[tuple[Behaviour, Counter[str]]] = [
    (silent, Counter({"no answer in time": 5})),
    (closes_at_once, Counter({"closed": 0, "reset": 0})),
    (resets_at_once, Counter({"reset": 0, "closed": 0})),
    (says(b"JAM 12:3", then_closes=True), Counter({"closed after half an answer": 0})),
    (says(b"JAM 12:3"), Counter({"no answer in time after half an answer": 5})),
    (says(b"JAM 25:00:00\r\n"), Counter({"something else": 0})),
    (says(b"JAM 12:34:56\n"), Counter({"something else": 0})),
    (says(b"JAM 11:34:56\r\n"), Counter({"wrong time": 40})),
    (says(b"x" * 1000), Counter({"something else after half an answer": 0})),
    (says(b"HTTP/1.1 400 Bad Request\r\n"), Counter({"something else": 0})),
    (says(b"ERROR bad_command: no\r\n"), Counter({"ERROR bad_command": 40})),
    (says(b"JAM 12:34:56\r\nJAM 12:34:56\r\n"), Counter({"something else": 0})),
]


@pytest.mark.parametrize(("behaviour", "causes"), BAD)
async def test_a_bad_server_fails_requests_by_cause(
    nursery: trio.Nursery, behaviour: Behaviour, causes: Counter[str]
) -> None:
    """Each fault has its own cause, and no request counts as answered."""
    plan: dict[str, Any] = {"seconds": 0.2} if 5 in causes.values() else {"requests": 40}
    tally = await tally_of(nursery, behaviour, patience=0.3, **plan)
    if causes.total():
        assert tally.failed == causes
    else:
        assert tally.failed.total() + tally.answered >= 40
        assert tally.failed.keys() | tally.unasked.keys() <= causes.keys()


async def resets_at_the_first_piece(stream: trio.abc.Stream) -> None:
    """Reset a connection in the middle of its first line."""
    assert await stream.receive_some(2) == b"TI"
    reset(stream)


async def resets_when_idle(stream: trio.abc.Stream) -> None:
    """Reset a connection shortly after its first answer."""
    await stream.receive_some()
    await stream.send_all(JAM)
    await trio.sleep(0.01)
    reset(stream)


async def answers_slowly(stream: trio.abc.Stream) -> None:
    """Send 600 answers in 1.2 seconds."""
    for _ in range(60):
        await trio.sleep(0.02)
        await stream.send_all(JAM * 10)
    await stream.receive_some()


SPLIT = Mix.parse("split:1")


@pytest.mark.parametrize(
    ("behaviour", "plan", "answered", "failed"),
    [
        # A reset in place of every tenth answer fails only that request.
        (tells(lambda: NOW, resets_every=10), {"requests": 1000}, 900, {"reset": 100}),
        (
            tells(lambda: NOW),
            {"requests": 100, "mix": Mix.parse("TIME:1,HELLO:1")},
            50,
            {"a time for a bad line": 50},
        ),
        # A request that was sent in part has failed, and is not sent again.
        (resets_at_the_first_piece, {"requests": 3, "mix": SPLIT}, 0, {"reset": 3}),
        # A reset between requests fails none of them.
        (resets_when_idle, {"requests": 3, "think_time": 0.5}, 3, {}),
        # Answers to lines that are not sent completely end the connection, not the load.
        (says(JAM * 2), {"requests": 20, "pipeline": 2, "mix": SPLIT}, 20, {}),
        # Requests that were sent before the end may finish after it, while answers arrive.
        (answers_slowly, {"seconds": 0.05, "pipeline": 600, "patience": 1.0}, 600, {}),
    ],
)
async def test_outcomes_are_exact(
    nursery: trio.Nursery, behaviour: Behaviour, plan: dict[str, Any], answered: int, failed: dict[str, int]
) -> None:
    """On one connection at a time, each request has its outcome, and is sent only once."""
    tally = await tally_of(nursery, behaviour, connections=1, **plan)
    assert (tally.answered, tally.failed) == (answered, failed)
    assert tally.sent == answered + sum(failed.values())
    assert not tally.unconnected
    assert not tally.unasked


async def test_a_full_server_is_counted_as_busy(nursery: trio.Nursery) -> None:
    """ERROR busy has its own cause, and other connections' requests are answered."""
    server = await start_tcp(nursery, max_connections=2)
    tally = (await run(address_of(server), seconds=0.3, connections=3)).tally
    await until(lambda: server.counters.connections_open == 0)
    assert tally.answered == server.counters.responses > 0
    assert tally.failed["ERROR busy"] + tally.unasked["ERROR busy"] > 0
    # The close is a reset if a request was on its way; the ERROR line is then lost.
    assert tally.failed.keys() <= {"ERROR busy", "reset"}


async def test_error_busy_is_not_a_right_answer_to_a_bad_line(nursery: trio.Nursery) -> None:
    """Only the ERROR that belongs to a bad line counts as rejected."""
    server = await start_tcp(nursery, max_connections=2)
    tally = (await run(address_of(server), seconds=0.3, mix=Mix.parse("TIME:1,HELLO:1"))).tally
    await until(lambda: server.counters.connections_open == 0)
    assert tally.rejected == sum(server.counters.rejected.values())
    assert tally.answered == server.counters.responses


async def test_the_load_gives_up_when_it_cannot_connect() -> None:
    """At a closed port, the load ends after its patience, and has sent nothing."""
    (free,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = free.socket.getsockname()
    await free.aclose()
    load = await run((host, port), requests=100, patience=0.3)
    assert (load.gave_up, load.tally.sent) == (True, 0)
    assert load.tally.unconnected.keys() == {"connection refused"}


async def test_the_load_survives_a_restart(nursery: trio.Nursery) -> None:
    """A restart fails only the requests in flight, by cause; then the load continues."""
    first = await start_tcp(nursery)
    host, port = address_of(first)
    load = make_load((host, port), Plan(connections=5, seconds=30.0))
    async with trio.open_nursery() as running:
        running.start_soon(run_beside, load)
        await until(lambda: load.tally.answered > 100)
        first.drain()
        await first.finished.wait()
        answered = load.tally.answered
        second = await start_tcp(nursery, port=port)
        await until(lambda: load.tally.answered > answered + 100)
        load.stop()
    tally = load.tally
    assert tally.failed.keys() <= {"closed", "reset", "ERROR draining"}
    await until(lambda: second.counters.connections_open == 0)
    assert tally.answered == first.counters.responses + second.counters.responses
    assert tally.in_flight == 0


async def test_a_stopped_load_waits_only_briefly(nursery: trio.Nursery) -> None:
    """After `stop`, requests in flight have a short time; then they have failed."""
    load = make_load(await start_bad(nursery, silent), Plan(connections=5))
    async with trio.open_nursery() as running:
        running.start_soon(run_beside, load)
        await until(lambda: load.tally.sent == 5)
        load.stop()
    assert load.tally.failed == {"interrupted": 5}
    assert load.ended - load.began < 5


def stalls(seconds: float) -> Behaviour:
    """Make a server that delays its first answer, and sends all others at once."""
    stalled: list[bool] = []

    async def behave(stream: trio.abc.Stream) -> None:
        async for data in stream:
            if not stalled:
                stalled.append(True)
                await trio.sleep(seconds)
            await stream.send_all(JAM * data.count(b"\n"))

    return behave


async def test_an_open_loop_shows_a_stall(nursery: trio.Nursery) -> None:
    """Requests are due during a stall too, and their latency counts from then."""
    load = await run(await start_bad(nursery, stalls(0.3)), requests=100, rate=200.0, connections=1)
    assert load.tally.answered == 100
    assert slower_than(load, 0.1) >= 30  # in a closed loop, only one


async def test_an_open_loop_shows_a_stall_until_its_end(nursery: trio.Nursery) -> None:
    """Requests that were due before the end are sent after it, with their latency."""
    load = await run(await start_bad(nursery, stalls(0.5)), seconds=0.4, rate=250.0, connections=1)
    tally = load.tally
    assert (tally.sent, tally.answered, tally.never_sent) == (100, 100, 0)
    assert slower_than(load, 0.09) == 100


async def test_requests_that_were_never_sent_are_counted(nursery: trio.Nursery) -> None:
    """Requests that were due while no connection was free are in the tally."""
    tally = await tally_of(nursery, silent, seconds=0.2, rate=500.0, connections=1, patience=0.3)
    assert tally.sent + tally.never_sent == 100
    assert tally.never_sent > 0


async def test_a_lost_piece_is_not_sent_on_the_next_connection(nursery: trio.Nursery) -> None:
    """After a reset, the rest of a split line is dropped, so that no bad line arises."""
    mix = Mix.parse("split:1," + "TIME " + "x" * 400 + ":20")
    plan: dict[str, Any] = {
        "requests": 20_000,
        "connections": 10,
        "pipeline": 50,
        "patience": 2.0,
        "mix": mix,
    }
    tally = await tally_of(nursery, tells(lambda: NOW, resets_every=97), **plan)
    assert tally.failed.keys() == {"reset"}
    assert tally.sent == tally.answered + tally.failed["reset"] == 20_000


async def test_patience_counts_from_the_last_byte(nursery: trio.Nursery) -> None:
    """A connection on which bytes move may take longer than the patience."""
    server = await start_tcp(nursery)
    plan: dict[str, Any] = {"requests": 300, "pipeline": 300, "connections": 1, "mix": Mix.parse("split:1")}
    load = await run(address_of(server), patience=0.3, **plan)
    assert load.ended - load.began > 0.3
    assert (load.tally.answered, load.tally.failed) == (300, {})


async def test_answers_before_a_reset_count(nursery: trio.Nursery) -> None:
    """Answers that arrived before a reset count, even if the reset is noticed during a send."""

    async def answers_and_resets(stream: trio.abc.Stream) -> None:
        await stream.receive_some(10_000)
        await stream.send_all(JAM * 1000)
        reset(stream)

    tally = await tally_of(
        nursery, answers_and_resets, seconds=0.1, pipeline=600_000, patience=25.0, connections=1
    )
    assert tally.answered >= 1000
    assert tally.failed["reset"] > 0


def test_a_schedule_repeats_what_was_given_back() -> None:
    """In an open loop, requests are due at even intervals, and again if they could not be sent."""
    schedule = Schedule(Plan(requests=4, rate=10.0), 0.0, Tally())
    assert schedule.take(9, 0.05, free=0.05) == [0.0]
    assert schedule.take(9, 0.05, free=0.05) == []
    assert schedule.take(9, 0.25, free=0.25) == [0.1, 0.2]
    schedule.give_back([0.2])
    assert schedule.take(1, 0.25, free=0.25) == [0.2]
    assert not schedule.over(0.25)
    assert schedule.take(9, 4.0, free=4.0) == [pytest.approx(0.3)]
    assert schedule.over(4.0)


@pytest.mark.parametrize("plan", [Plan(requests=10), Plan(seconds=9), Plan(requests=10, rate=1e6)])
def test_a_stopped_schedule_stays_stopped(plan: Plan) -> None:
    """After the stop nothing is due any more, also when requests are given back."""
    schedule = Schedule(plan, 0.0, Tally())
    taken = schedule.take(5, 1.0)
    schedule.stop(1.0)
    schedule.give_back(taken)
    assert schedule.take(5, 2.0) == []
    assert schedule.over(2.0)
    assert schedule.next_due(2.0) == inf


@pytest.mark.parametrize(
    "text", ["", "TIME", "TIME:0", "TIME:x", "QUIT:1", "TIME:1,,HELLO:1", "x" * 501 + ":1", "\n:1"]
)
def test_a_bad_mix_is_refused(text: str) -> None:
    """The error says what is expected."""
    with pytest.raises(ValueError, match="KIND:WEIGHT with commas between"):
        Mix.parse(text)


def test_a_mix_deals_by_weight() -> None:
    """In each deck, a kind is as frequent as its weight."""
    mix = Mix.parse("TIME:3, HELLO:2,split:1")
    dealt: Iterator[Kind] = mix.deal(random.Random(1))
    assert Counter(islice(dealt, 60)) == {
        Kind(b"TIME\r\n"): 30,
        Kind(b"HELLO\r\n"): 20,
        Kind(b"TIME\r\n", 2): 10,
    }
    assert mix.only is None
    assert Mix.parse("HELLO:2").only == Kind(b"HELLO\r\n")


def checker_at(second: float) -> tuple[AnswerChecker, Tally]:
    """Make a checker for a server whose clock stands still, and its tally."""
    tally = Tally()
    return AnswerChecker(Records(tally), ServerClock(lambda _: second)), tally


@pytest.mark.parametrize(
    ("second", "answer", "right"),
    [
        (NOW % DAY, b"12:34:55", True),
        (NOW % DAY, b"12:34:56", True),
        (NOW % DAY, b"12:34:57", True),
        (NOW % DAY, b"12:34:54", False),
        (NOW % DAY, b"12:34:58", False),
        (0.5, b"23:59:59", True),
        (86_399.5, b"00:00:00", True),
    ],
)
def test_the_second_is_checked(second: float, answer: bytes, *, right: bool) -> None:
    """An answer may differ by one second from the server's clock, across midnight too."""
    checker, tally = checker_at(second)
    checker.sent(0.0, 0.0, 1, wants_time=True)
    assert checker.receive(b"JAM " + answer + b"\r\n", 0.5) is None
    assert (tally.answered, tally.failed.total()) == ((1, 0) if right else (0, 1))


def test_an_old_answer_becomes_wrong() -> None:
    """An answer that was right is wrong two seconds later."""
    tally = Tally()
    clock = ServerClock(lambda now: now)
    checker = AnswerChecker(Records(tally), clock)
    for now in (100.0, 101.9, 102.0):
        clock.forget(now)
        checker.sent(now, now, 2, wants_time=True)
        checker.receive(b"JAM 00:01:40\r\n" * 2, now)
    assert (tally.answered, tally.failed) == (4, {"wrong time": 2})


def test_the_time_at_which_a_request_was_due_is_wrong_if_it_was_sent_later() -> None:
    """The answer must show a time after the request was sent, so a stopped clock is noticed."""
    tally = Tally()
    checker = AnswerChecker(Records(tally), ServerClock(lambda now: now))
    checker.sent(100.0, 110.0, 1, wants_time=True)
    checker.receive(b"JAM 00:01:40\r\n", 110.1)
    assert tally.failed == {"wrong time": 1}


def test_answers_are_matched_however_they_are_cut() -> None:
    """Answers in pieces of any size belong to the right requests."""
    stream = b"JAM 12:34:56\r\nERROR bad_command: x\r\nJAM 12:34:56\r\nJAM 12:34:57\r\n"
    for size in range(1, len(stream) + 1):
        checker, tally = checker_at(NOW % DAY)
        checker.sent(0.0, 0.0, 1, wants_time=True)
        checker.sent(0.0, 0.0, 1, wants_time=False)
        checker.sent(0.0, 0.0, 2, wants_time=True)
        for start in range(0, len(stream), size):
            assert checker.receive(stream[start : start + size], 0.25) is None
        assert (tally.sent, tally.answered, tally.rejected) == (4, 3, 1)
        assert not checker.waiting


def test_a_request_of_the_warm_up_without_an_answer_is_not_in_the_percentiles() -> None:
    """Its request has failed, but how long it took is not measured."""
    tally = Tally()
    checker = AnswerChecker(Records(tally, measured_from=1.0), ServerClock(lambda now: now))
    for start in (0.5, 1.5):
        checker.sent(start, start, 1, wants_time=True)
    checker.lost("no answer in time", 6.5, in_time=False)
    assert tally.failed == {"no answer in time": 2}
    assert tally.longer == {5_000_000: 1}


def test_a_partial_line_ends_with_its_connection() -> None:
    """Half a line that arrived between requests is counted, and does not change the next connection."""
    checker, tally = checker_at(NOW % DAY)
    checker.receive(b"ERROR bu", 0.0)
    checker.closed(cleanly=True, now=0.0)
    checker.sent(0.0, 0.0, 1, wants_time=True)
    assert checker.receive(JAM, 0.1) is None
    assert (tally.answered, tally.unasked) == (1, {"something else": 1})


@given(
    seen=st.dictionaries(st.integers(0, 5000), st.integers(1, 9), min_size=1), percentile=st.floats(0, 100)
)
def test_percentiles_are_exact(seen: dict[int, int], percentile: float) -> None:
    """A percentile is the shortest latency that this share of all latencies does not exceed."""
    latencies = sorted(Counter(seen).elements())
    found = round(Percentiles(Counter(seen)).at(percentile) * 1e6)
    assert found in seen
    share = percentile * len(latencies) / 100
    assert sum(each <= found for each in latencies) >= share - 1e-6
    below = sum(each < found for each in latencies)
    assert below < share + 1e-6 or below == 0


def test_percentiles_have_known_values() -> None:
    """Of 100 latencies, the 99th percentile is the 99th and the 100th the longest; without any, it is 0."""
    hundred = Percentiles(Counter(range(1, 101)))
    assert [hundred.at(each) for each in (0, 50, 99, 99.1, 100)] == [1e-6, 50e-6, 99e-6, 100e-6, 100e-6]
    assert Percentiles(Counter()).at(50) == 0


@pytest.mark.parametrize("connections", [3, 100])
async def test_answers_that_arrived_while_the_client_stood_still_are_in_time(
    nursery: trio.Nursery, connections: int
) -> None:
    """A request is given up only after a look whether its answer has arrived."""
    plan = Plan(connections=connections, requests=1000, patience=0.3)
    load = make_load(await start_bad(nursery, tells(lambda: NOW)), plan)

    def stand_still(_now: float) -> None:
        # All requests in flight are answered meanwhile, and longer ago than the patience.
        time.sleep(1.5)  # in the thread of the load

    load.loop.at(load.began + 0.05, stand_still)
    await run_beside(load)
    assert load.tally.stood_still >= 0.4
    assert load.tally.failed == {}
    assert load.tally.answered == 1000


async def test_a_client_that_stood_still_while_it_waited_does_not_blame_the_server(
    nursery: trio.Nursery,
) -> None:
    """When the answer came is not known, so the whole time may be the client's own."""
    plan = Plan(connections=1, rate=100.0, requests=100, patience=PATIENCE)
    load = make_load(await start_bad(nursery, tells(lambda: NOW)), plan)
    wait = load.loop.poller.wait
    stopped: list[bool] = []

    def stand_still(seconds: float) -> list[tuple[Connection, int]]:
        # As after SIGSTOP and SIGCONT: the wait has ended by its timeout, and reports nothing.
        if stopped or not load.tally.in_flight:
            return wait(seconds)
        stopped.append(True)
        time.sleep(1.5)  # in the thread of the load
        return []

    load.loop.poller.wait = stand_still  # type: ignore[method-assign]  # in this test only
    await run_beside(load)
    assert load.tally.answered == 100
    assert load.tally.own_seconds >= 0.4
    assert load.tally.late > 0
    assert load.tally.latest >= 0.4
