"""Tasks that watch the process from inside. Each runs until it is cancelled."""

import ctypes
from collections.abc import Callable
from contextlib import suppress

import trio
from structlog.typing import FilteringBoundLogger

from triojam.core.counters import Counters

# Four samples a second find short stalls within a scrape interval, and cost almost nothing.
LAG_INTERVAL = 0.25
CLOCK_INTERVAL = 1.0
# Slewing moves the clock by at most 500 ppm (adjtimex(2)): far less than this within one interval.
CLOCK_STEP = 0.5
REPORT_INTERVAL = 10.0
# When this many connections have ended, their memory is returned to the system, which takes 14 ms for 200 MB.
TRIM_INTERVAL = 0.5
CROWD = 250


async def watch_lag(counters: Counters) -> None:
    """Observe how late the scheduler wakes a task."""
    while True:
        due = trio.current_time() + LAG_INTERVAL
        await trio.sleep_until(due)
        counters.loop_lag.observe(trio.current_time() - due)


async def watch_clock(counters: Counters, now: Callable[[], float]) -> None:
    """Count the steps of the wall clock against the monotonic clock."""
    before = now() - trio.current_time()
    while True:
        await trio.sleep(CLOCK_INTERVAL)
        offset = now() - trio.current_time()
        if abs(offset - before) > CLOCK_STEP:
            counters.clock_steps += 1
        before = offset


async def report_traffic(counters: Counters, log: Callable[[], FilteringBoundLogger]) -> None:
    """Log the totals, and their growth since the last line, while there is traffic.

    log: returns the present logger; a reload replaces it.
    """
    before, connections, accept_errors = Counters().totals(), 0, 0
    while True:
        await trio.sleep(REPORT_INTERVAL)
        totals, accepted = counters.totals(), counters.connections
        if totals["requests"] > before["requests"] or accepted > connections:
            new = {name: totals[name] - before[name] for name in totals if name != "connections"}
            log().info(
                "traffic",
                **totals,
                **{f"new_{name}": number for name, number in new.items()},
                new_connections=accepted - connections,
                sentence=f"traffic: {new['requests']:,} requests in {REPORT_INTERVAL:g} s "
                f"({new['rejected']:,} rejected, {new['send_errors']:,} send errors), "
                f"{totals['requests']:,} in all; {totals['connections']:,} connections open",
            )
            before, connections = totals, accepted
        if (failed := sum(counters.accept_errors.values())) != accept_errors:
            log().warning("accepting failed", errors=failed - accept_errors)
            accept_errors = failed


def trim_heap() -> None:
    """Return free memory of the heap to the system, if the C library can do it (malloc_trim(3))."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


async def give_back_memory(counters: Counters, trim: Callable[[], object] = trim_heap) -> None:
    """Call `trim` when a crowd of clients has left: the C library keeps free memory between used memory."""
    most = 0
    while True:
        most = max(most, counters.connections_open)
        if most - counters.connections_open >= CROWD:
            trim()
            most = counters.connections_open
        await trio.sleep(TRIM_INTERVAL)
