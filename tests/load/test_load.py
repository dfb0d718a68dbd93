"""The load generator: against servers, good and bad, every request ends in one place, and is checked."""

import random
from collections import Counter
from collections.abc import Iterator
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
from tests.helpers.servers import JAM, NOW, Running, start_lane, start_tcp, until
from triojam.client.time_of_day import DAY
from triojam.load.checker import AnswerChecker, ServerClock, Tally
from triojam.load.generator import LoadGenerator
from triojam.load.plan import Kind, Mix, Plan, Schedule
from triojam.load.report import Percentiles

MIX = Mix.parse("TIME:8,TIME please:1,HELLO:3,split:2")


def clock_at(second: float) -> ServerClock:
    """Make a clock that stands at this second of the day, as that of the server does."""
    return ServerClock(lambda _now: second)


async def run(
    address: tuple[str, int], *, second: float = NOW % DAY, seed: int = 1, **plan: Any
) -> LoadGenerator:
    """Send a load to a server whose clock stands at `second`."""
    load = LoadGenerator(
        Plan(**{"connections": 5, "patience": 5.0} | plan),
        address,
        clock_at(second),
        chance=random.Random(seed),
    )
    with trio.fail_after(30):
        await load.run()
    tally = load.tally
    assert tally.in_flight == 0
    assert tally.latencies.total() == tally.settled
    return load


def address_of(server: Running) -> tuple[str, int]:
    """Return where it listens."""
    assert server.server is not None
    host, port = server.server.addresses[0]
    return str(host), int(port)


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
async def test_balances_with_the_server(nursery: trio.Nursery, name: str, *, lane: bool) -> None:
    """What was sent, answered and rejected is what the server counted, to the last one."""
    server = await (start_lane if lane else start_tcp)(nursery)
    plan = PLANS[name]
    load = await run(address_of(server), **plan)
    tally, counters = load.tally, server.counters
    assert not tally.failed
    assert not tally.unconnected
    assert not tally.unasked
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
    nursery.cancel_scope.cancel()


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
async def test_bad_servers(nursery: trio.Nursery, behaviour: Behaviour, causes: Counter[str]) -> None:
    """What a bad server does is told apart, and no request of it is answered."""
    address = await start_bad(nursery, behaviour)
    plan: dict[str, Any] = {"seconds": 0.2} if 5 in causes.values() else {"requests": 40}
    load = await run(address, patience=0.3, **plan)
    failed = load.tally.failed
    if causes.total():
        assert failed == causes
    else:
        assert failed.total() + load.tally.answered >= 40
        assert failed.keys() | load.tally.unasked.keys() <= causes.keys()
    nursery.cancel_scope.cancel()


async def test_every_tenth_request_is_reset(nursery: trio.Nursery) -> None:
    """Exactly the requests whose answers were lost by a reset are missing, and the rest is answered."""
    address = await start_bad(nursery, tells(lambda: NOW, resets_every=10))
    load = await run(address, requests=1000, connections=1)
    assert load.tally.failed == {"reset": 100}
    assert load.tally.answered == 900
    nursery.cancel_scope.cancel()


async def test_a_bad_line_that_is_answered(nursery: trio.Nursery) -> None:
    """A time for a line that was to be rejected is no right answer."""
    address = await start_bad(nursery, tells(lambda: NOW))
    load = await run(address, requests=100, mix=Mix.parse("TIME:1,HELLO:1"))
    assert load.tally.failed == {"a time for a bad line": 50}
    assert load.tally.answered == 50
    nursery.cancel_scope.cancel()


async def test_busy(nursery: trio.Nursery) -> None:
    """Connections that a server has no room for are told apart from failed requests of others."""
    server = await start_tcp(nursery, max_connections=2)
    load = await run(address_of(server), seconds=0.3, connections=3)
    await until(lambda: server.counters.connections_open == 0)
    assert load.tally.answered == server.counters.responses > 0
    assert load.tally.failed["ERROR busy"] + load.tally.unasked["ERROR busy"] > 0
    # The close can be a reset, if a request was on its way, and then what was said before it is lost.
    assert load.tally.failed.keys() <= {"ERROR busy", "reset"}
    nursery.cancel_scope.cancel()


async def test_nobody_there() -> None:
    """Where nobody listens, it gives up after as long as an answer may take, and has sent nothing."""
    (free,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = free.socket.getsockname()
    await free.aclose()
    load = await run((host, port), requests=100, patience=0.3)
    assert load.tally.sent == 0
    assert load.tally.unconnected.keys() == {"connection refused"}


async def test_a_restart(nursery: trio.Nursery) -> None:
    """A server that goes and comes back loses what was in flight, by cause, and the load goes on."""
    first = await start_tcp(nursery)
    host, port = address_of(first)
    load = LoadGenerator(
        Plan(connections=5, seconds=30.0), (host, port), clock_at(NOW % DAY), chance=random.Random(1)
    )
    async with trio.open_nursery() as loading:
        loading.start_soon(load.run)
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
    nursery.cancel_scope.cancel()


async def test_stopped_early(nursery: trio.Nursery) -> None:
    """Stopped, it waits for what is under way, but not for ever; what is then left has failed."""
    load = LoadGenerator(
        Plan(connections=5), await start_bad(nursery, silent), clock_at(0.0), chance=random.Random(1)
    )
    async with trio.open_nursery() as loading:
        loading.start_soon(load.run)
        await until(lambda: load.tally.sent == 5)
        load.stop()
    assert load.tally.failed == {"interrupted": 5}
    assert load.ended - load.began < 5
    nursery.cancel_scope.cancel()


async def test_an_open_loop_does_not_hide_a_stall(nursery: trio.Nursery) -> None:
    """While a server stands still, requests go on being due, and their latency counts from then."""

    async def stalls_once(stream: trio.abc.Stream) -> None:
        async for data in stream:
            await trio.sleep(0.3 if not stalled else 0)
            stalled.append(True)
            await stream.send_all(b"JAM 12:34:56\r\n" * data.count(b"\n"))

    stalled: list[bool] = []
    address = await start_bad(nursery, stalls_once)
    load = await run(address, requests=100, rate=200.0, connections=1)
    late = sum(times for latency, times in load.tally.latencies.items() if latency > 100_000)
    assert load.tally.answered == 100
    assert late >= 30  # a closed loop would have seen but one
    nursery.cancel_scope.cancel()


def test_schedule() -> None:
    """An open loop has requests due at even times, and again those that could not be sent."""
    schedule = Schedule(Plan(requests=4, rate=10.0), 0.0)
    assert schedule.take(9, 0.05) == [0.0]
    assert schedule.take(9, 0.05) == []
    assert schedule.take(9, 0.25) == [0.1, 0.2]
    schedule.give_back([0.2])
    assert schedule.take(1, 0.25) == [0.2]
    assert not schedule.over(0.25)
    assert schedule.take(9, 9.0) == [pytest.approx(0.3)]
    assert schedule.over(9.0)


@pytest.mark.parametrize(
    "text", ["", "TIME", "TIME:0", "TIME:x", "QUIT:1", "TIME:1,,HELLO:1", "x" * 501 + ":1", "\n:1"]
)
def test_no_mix(text: str) -> None:
    """What is no mix is refused, with what it takes."""
    with pytest.raises(ValueError, match="KIND:WEIGHT with commas between"):
        Mix.parse(text)


def test_mix() -> None:
    """Over a deck, each kind comes as often as its weight says."""
    mix = Mix.parse("TIME:3, HELLO:2,split:1")
    dealt: Iterator[Kind] = mix.deal(random.Random(1))
    assert Counter(next(dealt) for _ in range(60)) == {
        Kind(b"TIME\r\n"): 30,
        Kind(b"HELLO\r\n"): 20,
        Kind(b"TIME\r\n", 2): 10,
    }
    assert mix.only is None
    assert Mix.parse("HELLO:2").only == Kind(b"HELLO\r\n")


def exchange_at(second: float) -> tuple[AnswerChecker, Tally]:
    """Make an exchange whose server's clock stands still."""
    tally = Tally()
    return AnswerChecker(tally, ServerClock(lambda _: second)), tally


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (b"12:34:55", True),
        (b"12:34:56", True),
        (b"12:34:57", True),
        (b"12:34:54", False),
        (b"12:34:58", False),
    ],
)
def test_the_second_is_checked(said: bytes, *, right: bool) -> None:
    """An answer may be off by one second, and no more."""
    exchange, tally = exchange_at(NOW % DAY)
    exchange.sent(0.0, 0.0, 1, wants_time=True)
    assert exchange.receive(b"JAM " + said + b"\r\n", 0.5) is None
    assert (tally.answered, tally.failed.total()) == ((1, 0) if right else (0, 1))


def test_the_second_is_checked_at_midnight() -> None:
    """At midnight, both days' answers may be right."""
    for second, said in ((0.5, b"23:59:59"), (86_399.5, b"00:00:00")):
        exchange, tally = exchange_at(second)
        exchange.sent(0.0, 0.0, 1, wants_time=True)
        exchange.receive(b"JAM " + said + b"\r\n", 0.0)
        assert tally.answered == 1


def test_an_old_answer_is_not_taken_for_a_new_one() -> None:
    """An answer that was right is wrong two seconds later."""
    tally, now = Tally(), 100.0
    clock = ServerClock(lambda now: now)
    exchange = AnswerChecker(tally, clock)
    for now in (100.0, 101.9, 102.0):
        clock.forget(now)
        exchange.sent(now, now, 2, wants_time=True)
        exchange.receive(b"JAM 00:01:40\r\n" * 2, now)
    assert (tally.answered, tally.failed) == (4, {"wrong time": 2})


def test_answers_in_pieces_and_together() -> None:
    """However the bytes are cut, answers are told apart and put to the right request."""
    stream = b"JAM 12:34:56\r\nERROR bad_command: x\r\nJAM 12:34:56\r\nJAM 12:34:57\r\n"
    for size in range(1, len(stream) + 1):
        exchange, tally = exchange_at(NOW % DAY)
        exchange.sent(0.0, 0.0, 1, wants_time=True)
        exchange.sent(0.0, 0.0, 1, wants_time=False)
        exchange.sent(0.0, 0.0, 2, wants_time=True)
        for start in range(0, len(stream), size):
            assert exchange.receive(stream[start : start + size], 0.25) is None
        assert (tally.sent, tally.answered, tally.rejected) == (4, 3, 1)
        assert not exchange.waiting


def stalls(seconds: float) -> Behaviour:
    """Make a server that answers its first request only after so long, and the others at once."""
    stalled: list[bool] = []

    async def behave(stream: trio.abc.Stream) -> None:
        async for data in stream:
            if not stalled:
                stalled.append(True)
                await trio.sleep(seconds)
            await stream.send_all(JAM * data.count(b"\n"))

    return behave


async def test_a_stall_until_the_end_is_not_hidden(nursery: trio.Nursery) -> None:
    """What was due before the end is sent after it, late, and counted as late."""
    load = await run(await start_bad(nursery, stalls(0.5)), seconds=0.4, rate=250.0, connections=1)
    assert (load.tally.sent, load.tally.answered, load.tally.never_sent) == (100, 100, 0)
    assert sum(times for latency, times in load.tally.latencies.items() if latency > 90_000) == 100
    nursery.cancel_scope.cancel()


async def test_what_could_never_be_sent_is_said(nursery: trio.Nursery) -> None:
    """Requests that were due while every connection waited in vain are not forgotten."""
    load = await run(await start_bad(nursery, silent), seconds=0.2, rate=500.0, connections=1, patience=0.3)
    assert load.tally.sent + load.tally.never_sent == 100
    assert load.tally.never_sent > 0
    nursery.cancel_scope.cancel()


async def test_split_lines_and_resets(nursery: trio.Nursery) -> None:
    """A piece that was to be sent on a connection that is gone is not sent on the next one."""
    address = await start_bad(nursery, tells(lambda: NOW, resets_every=97))
    mix = Mix.parse("split:1," + "TIME " + "x" * 400 + ":20")
    load = await run(address, requests=20_000, connections=10, pipeline=50, mix=mix, patience=2.0)
    assert load.tally.failed.keys() == {"reset"}
    assert load.tally.sent == load.tally.answered + load.tally.failed["reset"] == 20_000
    nursery.cancel_scope.cancel()


async def test_a_line_that_was_begun_was_sent(nursery: trio.Nursery) -> None:
    """A request of which the first piece is gone is lost with its connection, and not sent again."""

    async def resets_at_the_first_piece(stream: trio.abc.Stream) -> None:
        assert await stream.receive_some() == b"TI"
        reset(stream)

    address = await start_bad(nursery, resets_at_the_first_piece)
    load = await run(address, requests=3, connections=1, mix=Mix.parse("split:1"))
    assert (load.tally.sent, load.tally.failed) == (3, {"reset": 3})
    nursery.cancel_scope.cancel()


async def test_a_refusal_is_not_the_error_that_a_bad_line_gets(nursery: trio.Nursery) -> None:
    """ERROR busy is no answer to a bad line, although it is an ERROR."""
    server = await start_tcp(nursery, max_connections=2)
    load = await run(address_of(server), seconds=0.3, mix=Mix.parse("TIME:1,HELLO:1"))
    await until(lambda: server.counters.connections_open == 0)
    assert load.tally.rejected == sum(server.counters.rejected.values())
    assert load.tally.answered == server.counters.responses
    nursery.cancel_scope.cancel()


async def test_patience_is_with_standstill(nursery: trio.Nursery) -> None:
    """As long as something moves on a connection, it may take as long as it likes."""
    server = await start_tcp(nursery)
    load = await run(
        address_of(server), requests=300, pipeline=300, connections=1, mix=Mix.parse("split:1"), patience=0.3
    )
    assert load.ended - load.began > 0.3
    assert (load.tally.answered, load.tally.failed) == (300, {})
    nursery.cancel_scope.cancel()


async def test_what_moves_at_the_end_may_finish(nursery: trio.Nursery) -> None:
    """Requests that were sent before the end are waited for as long as answers come."""

    async def steady(stream: trio.abc.Stream) -> None:
        for _ in range(60):
            await trio.sleep(0.01)  # what it is to be slow
            await stream.send_all(JAM * 10)
        await stream.receive_some()

    load = await run(
        await start_bad(nursery, steady), seconds=0.05, pipeline=600, connections=1, patience=0.3
    )
    assert (load.tally.answered, load.tally.failed) == (600, {})
    nursery.cancel_scope.cancel()


async def test_answers_before_a_reset_count(nursery: trio.Nursery) -> None:
    """Answers that arrived are answers, although the connection then broke while more was being sent."""

    async def answers_and_resets(stream: trio.abc.Stream) -> None:
        await stream.receive_some(10_000)
        await stream.send_all(JAM * 1000)
        reset(stream)

    address = await start_bad(nursery, answers_and_resets)
    load = await run(address, seconds=0.1, pipeline=600_000, connections=1)
    assert load.tally.answered >= 1000
    assert load.tally.failed["reset"] > 0
    nursery.cancel_scope.cancel()


def test_a_clock_that_stood_still_is_noticed_in_an_open_loop() -> None:
    """A request that was sent long after it was due may not be answered with the time at which it was due."""
    tally = Tally()
    exchange = AnswerChecker(tally, ServerClock(lambda now: now))
    exchange.sent(100.0, 110.0, 1, wants_time=True)
    exchange.receive(b"JAM 00:01:40\r\n", 110.1)
    assert tally.failed == {"wrong time": 1}


def test_leftovers_are_not_blamed_on_the_next_connection() -> None:
    """Half a line that came between requests is gone with its connection, and is said."""
    exchange, tally = exchange_at(NOW % DAY)
    exchange.receive(b"ERROR bu", 0.0)
    exchange.closed()
    exchange.sent(0.0, 0.0, 1, wants_time=True)
    assert exchange.receive(JAM, 0.1) is None
    assert (tally.answered, tally.unasked) == (1, {"something else": 1})


@pytest.mark.parametrize("plan", [Plan(requests=10), Plan(seconds=9), Plan(requests=10, rate=1e6)])
def test_a_stopped_schedule_stays_stopped(plan: Plan) -> None:
    """What is given back after the stop is not sent again, and nothing is due any more."""
    schedule = Schedule(plan, 0.0)
    taken = schedule.take(5, 1.0)
    schedule.stop(1.0)
    schedule.give_back(taken)
    assert schedule.take(5, 2.0) == []
    assert schedule.over(2.0)
    assert schedule.next_due(2.0) == inf


@given(
    seen=st.dictionaries(st.integers(0, 5000), st.integers(1, 9), min_size=1), percentile=st.floats(0, 100)
)
def test_percentiles_are_exact(seen: dict[int, int], percentile: float) -> None:
    """A percentile is the first latency, by length, that as many percent do not exceed."""
    latencies = sorted(Counter(seen).elements())
    found = Percentiles(Counter(seen)).at(percentile)
    assert round(found * 1e6) in seen
    within = sum(each <= round(found * 1e6) for each in latencies)
    assert within >= percentile * len(latencies) / 100 - 1e-6
    below = sum(each < round(found * 1e6) for each in latencies)
    assert below < percentile * len(latencies) / 100 + 1e-6 or below == 0


def test_percentiles_by_value() -> None:
    """Of a hundred latencies the 99th percentile is the 99th, and the longest is the last; of none, 0."""
    hundred = Percentiles(Counter(range(1, 101)))
    assert [hundred.at(each) for each in (0, 50, 99, 99.1, 100)] == [1e-6, 50e-6, 99e-6, 100e-6, 100e-6]
    assert Percentiles(Counter()).at(50) == 0
