"""Fuzzing the clients: `load`, `ask`, `ask --precise` and `watch` against a server that does anything.

An input says which client asks and how, and then what the server does on each connection (`hostile`). Client
and server share one thread, the kernel's loopback and a clock that jumps to the next moment at which either
does something, so that a patience of seconds takes no time. Whatever the server does: no exception, an end in
time, no socket left open, no wait without a pause, and every request counted once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC
from math import inf

import trio
import trio.testing

from tests.fuzz.hostile import HostileServer, Reader, authority, free_address, is_honest, read_scripts
from tests.fuzz.simulated import BEGAN, QUICK, SLOW, SLUGGISH, Case, run_load
from triojam.client.ask import AskOptions
from triojam.client.precise import SLOW_SECONDS, find_offset
from triojam.client.session import Answer, AskError, Target, connect
from triojam.client.time_of_day import DAY, fold
from triojam.client.watch import Watched, plain_line, summary, watch
from triojam.load.measure.tls import Trust
from triojam.load.plan import Mix, Plan

# The lines that a load sends.
MIXES = (
    "TIME:1", "split:1", "TIME:3,HELLO:1", "TIME:2,split:2,HELLO:1", "HELLO:1",
    f"TIME:1,{'x' * 400}:1", f"TIME {'x' * 400}:1,split:1",
)  # fmt: skip


def try_one(data: bytes) -> None:
    """Run one input."""
    reader = Reader(data)
    match reader.below(8):
        case 5:
            _try_load(reader, tls=True)
        case 6:
            trio.run(_try_ask, reader, clock=trio.testing.MockClock(autojump_threshold=0))
        case 7:
            trio.run(_try_precise, reader, clock=trio.testing.MockClock(autojump_threshold=0))
        case _:
            _try_load(reader, tls=False)


@contextmanager
def _server(reader: Reader, *, tls: bool, now: float) -> Iterator[HostileServer]:
    base = reader.one_of((0.0, DAY - BEGAN - 0.5, 0.25))
    backlog = reader.one_of((100, 100, 0))
    deaf_until = now + reader.one_of((-1.0, -1.0, 0.1, 4.0))
    server = HostileServer(free_address(), read_scripts(reader), tls, base, backlog, deaf_until)
    try:
        yield server
    finally:
        server.close()


def _read_case(reader: Reader) -> Case:
    """Read how a load runs."""
    plan = Plan(
        connections=reader.below(6) + 1,
        requests=reader.one_of((None, 1, 4, 16)),
        seconds=reader.one_of((0.3, 0.05, 1.0)),
        pipeline=reader.below(8) + 1,
        visits=reader.one_of((False, True)),
        rate=reader.one_of((None, None, 7.0, 50.0, 400.0)),
        last_rate=reader.one_of((None, 0.5, 100.0)),
        think_time=reader.one_of((0.0, 0.0, 0.004, 0.3)),
        patience=reader.one_of((2.0, 0.05, 0.3)),
        mix=Mix.parse(reader.one_of(MIXES)),
        warm_up=reader.one_of((0.0, 0.1)),
    )
    if plan.rate is None:
        plan = replace(plan, last_rate=None)
    worker = reader.one_of((0, 0, 1))
    if worker:
        plan = replace(plan, workers=2, connections=plan.connections + 1)
    step = reader.one_of((QUICK, SLOW, SLUGGISH))
    if plan.rate is None and (plan.requests is None or plan.warm_up):
        step = max(step, SLOW)  # a fast client would send too many requests for a fuzzer
    how = reader.below(8)
    return Case(
        plan=plan,
        worker=worker,
        step=step,
        edge=how % 2 == 0,
        halves=reader.one_of((False, True)),
        piece=reader.one_of((65536, 7, 64)),
        stops=reader.one_of((inf, inf, inf, 0.01, 0.2)),
        cuts=reader.one_of((inf, inf, inf, 0.01, 0.2)),
        sleeps=(None, None, (0.03, 10.0), (0.01, 0.4))[how // 2],
    )


def _try_load(reader: Reader, *, tls: bool) -> None:
    case = _read_case(reader)
    with _server(reader, tls=tls, now=BEGAN) as server:
        run_load(case, server)


async def _try_ask(reader: Reader) -> None:
    """Ask once, or repeatedly as `watch` does."""
    patience = reader.one_of((2.0, 0.05, 0.3))
    times = reader.below(4)
    tls = reader.one_of((None, "localhost"))
    began = trio.current_time()
    context = Trust("localhost", authority().cert_pem.bytes().decode()).context() if tls else None
    options = AskOptions(patience=patience, tls=context, name=tls)
    with _server(reader, tls=reader.one_of((False, True)), now=began) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow, server)
            watched = Watched(Target(*server.address))
            if times:
                await watch([watched], options, _print, interval=0.1, count=times)
            else:
                watched.add(await options.ask(watched.target), "00:00:00")
                _print(watched)
            nursery.cancel_scope.cancel()
        summary([watched])
        assert len(watched.round_trips) + watched.failed == max(times, 1)
        assert trio.current_time() - began <= max(times, 1) * (2 * patience + 4.1)
        assert len(watched.round_trips) <= server.said(rb"JAM \d\d:\d\d:\d\d\r")


def _print(server: Watched) -> None:
    plain_line(server)


class _TrioClock:
    """The clock of `ask --precise`: that of Trio's loop."""

    def now(self) -> float:
        return trio.current_time()

    def step(self) -> float:
        return 0.0

    async def wait_until(self, moment: float) -> None:
        await trio.sleep_until(moment)


async def _try_precise(reader: Reader) -> None:
    """Search an offset; if the server has told only right times, the truth lies within the bound."""
    patience = reader.one_of((2.0, 0.05, 0.3))
    began = trio.current_time()
    with _server(reader, tls=False, now=began) as server:
        answer: Answer | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow, server)
            try:
                async with await connect(Target(*server.address), patience=patience) as session:
                    answer = await find_offset(session, _TrioClock(), zone=UTC, patience=patience)
            except AskError as exc:
                str(exc)
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began <= 2 * patience + SLOW_SECONDS + 5
        if answer is not None and is_honest(server.scripts):
            truth = fold(server.base)
            assert abs(fold(answer.offset - truth)) <= answer.bound


async def _follow(server: HostileServer) -> None:
    """Let the server act when something has come, and when it wants to."""
    while True:
        server.step(trio.current_time())
        with trio.move_on_at(server.due):
            await trio.lowlevel.wait_readable(server.fileno())
