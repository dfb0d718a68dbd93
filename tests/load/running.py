"""Runs load generators against servers of a test."""

import random
from typing import Any

import trio

from tests.helpers.bad_servers import Behaviour, start_bad
from tests.helpers.servers import NOW, Running
from triojam.client.time_of_day import DAY
from triojam.load.measure.clock import ServerClock
from triojam.load.measure.generator import LoadGenerator
from triojam.load.measure.tally import Tally
from triojam.load.plan import Plan


def make_load(address: tuple[str, int], plan: Plan) -> LoadGenerator:
    """Make a load for a server whose clock stands at NOW."""
    return LoadGenerator(plan, address, ServerClock(lambda _now: NOW % DAY), chance=random.Random(1))


async def run(address: tuple[str, int], **plan: Any) -> LoadGenerator:
    """Run a load against a server whose clock shows NOW."""
    load = make_load(address, Plan(**{"connections": 5, "patience": 5.0} | plan))
    await run_beside(load)
    assert load.tally.in_flight == 0
    assert len(load.records.latencies) + load.tally.warmed_up == load.tally.settled
    return load


async def run_beside(load: LoadGenerator) -> None:
    """Run a load in a thread: its loop is not Trio's."""
    try:
        with trio.fail_after(30):
            await trio.to_thread.run_sync(load.run, abandon_on_cancel=True)
    finally:
        load.cut()


def slower_than(load: LoadGenerator, seconds: float) -> int:
    """Return how many right answers had a higher latency."""
    return sum(latency > seconds * 1e6 for latency in load.records.latencies)


async def tally_of(nursery: trio.Nursery, behaviour: Behaviour, **plan: Any) -> Tally:
    """Run a load against a bad server, and return its tally."""
    return (await run(await start_bad(nursery, behaviour), **plan)).tally


def address_of(server: Running) -> tuple[str, int]:
    """Return the address of a server."""
    assert server.server is not None
    host, port = server.server.addresses[0]
    return str(host), int(port)
