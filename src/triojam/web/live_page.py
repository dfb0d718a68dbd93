"""What the live page shows: the counters now, and their values over the last five minutes."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import trio

from triojam.core.counters import Counters, Histogram
from triojam.core.protocol import read_jam
from triojam.web.kernel_clock import KernelClock

INTERVAL = 1.0
KEPT_SECONDS = 300
# Quantiles cover this many seconds.
RECENT_SECONDS = 10


class LivePage:
    """Reads the counters once a second, and returns the content of the page.

    not_ready: returns why the server takes no new clients, or None. now, jam: return the served time, in
    seconds since the epoch and as an answer line. kernel_clock: returns the kernel clock's state, or None.
    """

    def __init__(  # noqa: PLR0913  # each is shown
        self,
        counters: Counters,
        *,
        not_ready: Callable[[], str | None],
        now: Callable[[], float],
        jam: Callable[[], bytes],
        kernel_clock: Callable[[], KernelClock | None],
        version: str,
    ) -> None:
        self._counters = counters
        self._not_ready = not_ready
        self._now = now
        self._jam = jam
        self._kernel_clock = kernel_clock
        self._version = version
        self._began = time.time_ns()  # a page sees by this that the server was restarted
        self._history: deque[tuple[float, int, int, int]] = deque(maxlen=KEPT_SECONDS + 1)
        self._recent: deque[tuple[list[int], list[int]]] = deque(maxlen=RECENT_SECONDS + 1)
        self._note()

    async def run(self) -> None:
        """Read the counters once a second, until cancelled."""
        while True:
            await trio.sleep(INTERVAL)
            self._note()

    def history(self) -> Sequence[tuple[float, int, int, int]]:
        """Return one sample per second: Trio's time, and the requests, responses and rejections so far."""
        return tuple(self._history)

    def snapshot(self) -> dict[str, Any]:
        """Return the content of the page, without the history."""
        c = self._counters
        kernel = self._kernel_clock()
        durations, lags = self._recent[0]
        return {
            "process": self._began,
            "version": self._version,
            "second_of_day": (read_jam(self._jam()) or 0) + self._now() % 1,
            "state": self._not_ready() or "ready",
            "synchronized": kernel and kernel.synchronized,
            "clock_steps": c.clock_steps,
            **c.totals(),
            "in_flight": c.unaccounted,
            "rejected_by_reason": c.rejected,
            "disconnects_by_reason": c.disconnects,
            "connections_limit": c.connections_limit,
            "p50": _quantile(c.request_duration, durations, 0.5),
            "p99": _quantile(c.request_duration, durations, 0.99),
            "lag_p99": _quantile(c.loop_lag, lags, 0.99),
            "tasks": task_tree(),
        }

    def _note(self) -> None:
        c = self._counters
        self._history.append((trio.current_time(), c.requests, c.responses, sum(c.rejected.values())))
        self._recent.append((c.request_duration.counts.copy(), c.loop_lag.counts.copy()))


def _quantile(histogram: Histogram, before: Sequence[int], quantile: float) -> float | None:
    """Estimate a quantile of the observations since `before`, in seconds, in the same way as Prometheus.

    It interpolates within a bucket. Above the last bound it returns that bound.
    """
    counts = [count - old for count, old in zip(histogram.counts, before, strict=True)]
    rank = quantile * sum(counts)
    if not rank:
        return None
    lower = 0.0
    for bound, count in zip(histogram.bounds, counts, strict=False):
        if count and rank <= count:
            return lower + (bound - lower) * rank / count
        rank -= count
        lower = bound
    return histogram.bounds[-1]


class Branch(TypedDict):
    """Tasks of one name in one nursery. times: their number. nurseries: of a single task, otherwise empty."""

    name: str
    times: int
    nurseries: list[list["Branch"]]


def task_tree(most: int = 200) -> Branch:
    """Return the running tasks, from Trio's first task down, with at most about `most` branches.

    Tasks without nurseries, such as those of clients, are grouped by name.
    """
    root = trio.lowlevel.current_root_task()
    if root is None:
        raise RuntimeError("there are tasks only while Trio runs")
    return _branch(root, [most])


def _branch(task: trio.lowlevel.Task, left: list[int]) -> Branch:
    left[0] -= 1
    nurseries = [_children(nursery, left) for nursery in task.child_nurseries]
    return Branch(name=_short(task.name), times=1, nurseries=nurseries)


def _children(nursery: trio.Nursery, left: list[int]) -> list[Branch]:
    alike: Counter[str] = Counter()
    branches = []
    for task in nursery.child_tasks:
        if not task.child_nurseries:
            alike[task.name] += 1
        elif left[0] > 0:
            branches.append(_branch(task, left))
    branches += [Branch(name=_short(name), times=times, nurseries=[]) for name, times in alike.items()]
    return sorted(branches, key=lambda branch: branch["name"])


def _short(name: str) -> str:
    """Shorten the name of a task for the page."""
    return name.removeprefix("triojam.").replace(".<locals>", "")
