"""Tasks that watch the process from inside, one idea each; every one runs until it is cancelled."""

import ctypes
from collections.abc import Callable
from contextlib import suppress

import trio
from structlog.typing import FilteringBoundLogger

from triojam.core.counters import Counters

# Four samples a second show a stall of a few milliseconds within a scrape interval, and cost nothing.
LAG_INTERVAL = 0.25
CLOCK_INTERVAL = 1.0
# Slewing moves the clock by at most 500 ppm (adjtimex(2)): far less than this within one interval.
CLOCK_STEP = 0.5
REPORT_INTERVAL = 10.0
# When this many connections have gone, their memory is given back to the system: 14 ms for 200 MB.
TRIM_INTERVAL = 0.5
CROWD = 250


async def watch_lag(counters: Counters) -> None:
    """Observe how late the scheduler wakes a task whose time has come."""
    while True:
        due = trio.current_time() + LAG_INTERVAL
        await trio.sleep_until(due)
        counters.loop_lag.observe(trio.current_time() - due)


async def watch_clock(counters: Counters, now: Callable[[], float]) -> None:
    """Count the moves of the wall clock against the monotonic one."""
    before = now() - trio.current_time()
    while True:
        await trio.sleep(CLOCK_INTERVAL)
        offset = now() - trio.current_time()
        if abs(offset - before) > CLOCK_STEP:
            counters.clock_steps += 1
        before = offset


async def report_traffic(counters: Counters, log: Callable[[], FilteringBoundLogger]) -> None:
    """Write what came since the last line beside the running totals, as long as there is traffic.

    log: returns the logger in force; a reload replaces it.
    """
    before, connections, accept_errors = Counters().totals(), 0, 0
    while True:
        await trio.sleep(REPORT_INTERVAL)
        totals = counters.totals()
        if (totals["requests"], counters.connections) != (before["requests"], connections):
            new = {name: totals[name] - before[name] for name in totals if name != "connections"}
            log().info(
                "traffic",
                **totals,
                **{f"new_{name}": number for name, number in new.items()},
                new_connections=counters.connections - connections,
                sentence=f"traffic: {new['requests']:,} requests in {REPORT_INTERVAL:g} s "
                f"({new['rejected']:,} rejected, {new['send_errors']:,} send errors), "
                f"{totals['requests']:,} in all; {totals['connections']:,} connections open",
            )
            before, connections = totals, counters.connections
        if (failed := sum(counters.accept_errors.values())) != accept_errors:
            log().warning("accepting failed", errors=failed - accept_errors)
            accept_errors = failed


def trim_heap() -> None:
    """Give the system back what is free within the heap, where the C library can (malloc_trim(3))."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


async def give_back_memory(counters: Counters, trim: Callable[[], object] = trim_heap) -> None:
    """Call `trim` when a crowd of clients has gone: the C library keeps what is free between what is used."""
    most = 0
    while True:
        most = max(most, counters.connections_open)
        if most - counters.connections_open >= CROWD:
            trim()
            most = counters.connections_open
        await trio.sleep(TRIM_INTERVAL)
