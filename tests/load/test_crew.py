"""The workers of a load are processes: they begin together, are added up, and end with their parent."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.helpers.bad_servers import silent, start_bad
from tests.helpers.servers import JAM, PATIENCE, Running, authority, start_lane, start_tcp, start_tls, until
from tests.load.running import address_of
from triojam.load.crew import Crew, WorkerError
from triojam.load.measure.tls import Trust
from triojam.load.plan import Mix, Plan

HALF_A_DAY = 43_200.0  # the servers' clocks stand still: any answer is right


def crew_for(address: tuple[str, int], **plan: Any) -> Crew:
    """Make a crew."""
    return Crew(Plan(**{"patience": PATIENCE} | plan), address, chance=random.Random(1))


async def balanced(
    server: Running, address: tuple[str, int], trust: Trust | None = None, **plan: Any
) -> Crew:
    """Run a crew, and check its sum against the server's counters."""
    crew = crew_for(address, **plan)
    with trio.fail_after(PATIENCE):
        await crew.run(0.0, HALF_A_DAY, trust)
    counters, total = server.counters, crew.total()
    await until(lambda: counters.connections_open == 0)
    assert not any((total.failed, total.unconnected, total.unasked, total.in_flight))
    assert (total.sent, total.answered, total.rejected) == (
        counters.requests,
        counters.responses,
        sum(counters.rejected.values()),
    )
    assert total.latencies.total() + total.warmed_up == total.settled
    return crew


@pytest.mark.parametrize("workers", [1, 3])
async def test_the_workers_are_added_up(nursery: trio.Nursery, workers: int) -> None:
    """All workers together send the requests of the plan, on its connections."""
    server = await start_lane(nursery)
    mix = Mix.parse("TIME:8,HELLO:1,split:1")
    crew = await balanced(
        server, address_of(server), workers=workers, requests=1000, connections=7, mix=mix, pipeline=3
    )
    assert (crew.total().sent, crew.total().opened) == (1000, 7)
    assert 0 < crew.busy <= 1


@pytest.mark.parametrize("visits", [False, True])
async def test_a_load_over_tls_is_checked_like_a_plain_one(nursery: trio.Nursery, *, visits: bool) -> None:
    """Every answer is decrypted, checked and counted."""
    server = await start_tls(nursery)
    assert server.server is not None
    trust = Trust("localhost", authority().cert_pem.bytes().decode())
    mix = Mix.parse("TIME:8,HELLO:1,split:1")
    host, port = server.server.tls_addresses[0][:2]
    address = (str(host), int(port))
    await balanced(server, address, trust, workers=2, requests=100, pipeline=2, mix=mix, visits=visits)


async def test_a_server_that_is_not_trusted_is_named_as_that(nursery: trio.Nursery) -> None:
    """The cause of a failed handshake says what is wrong with the certificate."""
    server = await start_tls(nursery)
    assert server.server is not None
    host, port = server.server.tls_addresses[0][:2]
    crew = crew_for((str(host), int(port)), connections=1, patience=0.3)
    with trio.fail_after(PATIENCE):
        await crew.run(0.0, HALF_A_DAY, Trust("localhost"))
    total = crew.total()
    assert (total.sent, crew.gave_up) == (0, True)
    assert all(cause.startswith("its certificate is not trusted: ") for cause in total.unconnected)


async def test_the_warm_up_is_not_measured(nursery: trio.Nursery) -> None:
    """Its requests are checked and counted, but have no latencies."""
    server = await start_tcp(nursery)
    crew = await balanced(server, address_of(server), rate=500.0, warm_up=0.3, seconds=0.2, workers=2)
    total = crew.total()
    assert total.sent + total.left_out == 250
    assert 0 < total.warmed_up <= 150  # fewer, if this machine was too slow


async def test_a_crew_that_is_stopped_has_a_result(nursery: trio.Nursery) -> None:
    """Requests in flight have a short time; then the totals are complete."""
    crew = crew_for(await start_bad(nursery, silent), connections=4, workers=2)
    async with trio.open_nursery() as running:
        running.start_soon(crew.run, 0.0, HALF_A_DAY)
        await until(lambda: crew.total().sent == 4)
        crew.stop()
    assert crew.total().failed == {"interrupted": 4}


async def test_a_crew_that_is_cut_does_not_wait(nursery: trio.Nursery) -> None:
    """A second interrupt ends the load at once."""
    crew = crew_for(await start_bad(nursery, silent), connections=4, workers=2)
    async with trio.open_nursery() as running:
        running.start_soon(crew.run, 0.0, HALF_A_DAY)
        await until(lambda: crew.total().sent == 4)
        crew.cut()
    assert crew.total().in_flight == 0


def children() -> list[int]:
    """Return the processes that this one has started."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


async def test_a_cancelled_crew_leaves_no_process(nursery: trio.Nursery) -> None:
    """When the load is cancelled, its workers end."""
    before = set(children())
    crew = crew_for(await start_bad(nursery, silent), connections=4, workers=2)
    async with trio.open_nursery() as running:
        running.start_soon(crew.run, 0.0, HALF_A_DAY)
        await until(lambda: crew.total().sent == 4)
        assert len(set(children()) - before) == 2
        running.cancel_scope.cancel()
    assert set(children()) == before


async def test_a_killed_worker_is_an_error(nursery: trio.Nursery) -> None:
    """Without the report of a worker there is no result, and the reason is named."""
    before = set(children())
    crew = crew_for(await start_bad(nursery, silent), connections=4, workers=2)
    raised = pytest.RaisesExc(WorkerError, match="ended unexpectedly")
    with pytest.RaisesGroup(raised, flatten_subgroups=True):
        async with trio.open_nursery() as running:
            running.start_soon(crew.run, 0.0, HALF_A_DAY)
            await until(lambda: crew.total().sent == 4)
            os.kill((set(children()) - before).pop(), signal.SIGKILL)
    assert set(children()) == before


async def test_workers_do_not_take_the_signals_of_a_terminal(nursery: trio.Nursery) -> None:
    """Ctrl-C reaches the whole process group; only the parent heeds it, and tells the workers."""
    before = set(children())
    crew = crew_for(await start_bad(nursery, silent), connections=4, workers=2)
    async with trio.open_nursery() as running:
        running.start_soon(crew.run, 0.0, HALF_A_DAY)
        await until(lambda: crew.total().sent == 4)
        for pid in set(children()) - before:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        crew.stop()
    assert crew.total().failed == {"interrupted": 4}


async def test_the_rate_is_that_of_the_time_in_which_requests_are_due(nursery: trio.Nursery) -> None:
    """The wait for the last answers is not part of it, nor is the warm-up."""

    async def answers_late(stream: trio.abc.Stream) -> None:
        while await stream.receive_some(6):
            await trio.sleep(0.3)
            await stream.send_all(JAM)

    crew = crew_for(
        await start_bad(nursery, answers_late), rate=100.0, seconds=0.5, warm_up=0.4, connections=99
    )
    with trio.fail_after(PATIENCE):
        await crew.run(0.0, HALF_A_DAY)
    total = crew.total()
    assert total.settled + total.left_out == 90
    # 50 answers to what was due from 0.1 to 0.6 s; a busy machine may shift some.
    assert 0 < total.timely < total.settled
    assert 0 < crew.counted_seconds < crew.seconds - 0.4
