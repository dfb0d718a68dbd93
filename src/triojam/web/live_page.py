"""What the live page shows: the counters as they are, and how they went in the last five minutes."""

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
# Quantiles are of what happened in the last so many seconds.
RECENT_SECONDS = 10


class LivePage:
    """Looks at the counters once a second, and says what a page is to show.

    not_ready: why new clients should go elsewhere, or None. now, jam: the served clock, as seconds since the
    epoch and as an answer line. kernel_clock: the state of the kernel's, or None.
    """

    def __init__(  # noqa: PLR0913  # a board shows this much
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
        self._began = time.time_ns()  # tells a page that this is another process than before
        self._history: deque[tuple[float, int, int, int]] = deque(maxlen=KEPT_SECONDS + 1)
        self._recent: deque[tuple[list[int], list[int]]] = deque(maxlen=RECENT_SECONDS + 1)
        self._note()

    async def run(self) -> None:
        """Look at the counters, until cancelled."""
        while True:
            await trio.sleep(INTERVAL)
            self._note()

    def history(self) -> Sequence[tuple[float, int, int, int]]:
        """Return the time on Trio's clock, and the requests, responses and rejections until then."""
        return tuple(self._history)

    def snapshot(self) -> dict[str, Any]:
        """Return everything else."""
        c = self._counters
        kernel = self._kernel_clock()
        durations, lags = (deque[list[int]](column) for column in zip(*self._recent, strict=True))
        return {
            "process": self._began,
            "version": self._version,
            "second_of_day": (read_jam(self._jam()) or 0) + self._now() % 1,
            "state": self._not_ready() or "ready",
            "synchronized": kernel and kernel.synchronized,
            "clock_steps": c.clock_steps,
            "requests": c.requests,
            "responses": c.responses,
            "rejected": sum(c.rejected.values()),
            "send_errors": sum(c.send_errors.values()),
            "in_flight": c.unaccounted,
            "rejected_by_reason": c.rejected,
            "disconnects_by_reason": c.disconnects,
            "connections": c.connections_open,
            "connections_limit": c.connections_limit,
            "p50": _quantile(c.request_duration, durations[0], 0.5),
            "p99": _quantile(c.request_duration, durations[0], 0.99),
            "lag_p99": _quantile(c.loop_lag, lags[0], 0.99),
            "tasks": task_tree(),
        }

    def _note(self) -> None:
        c = self._counters
        self._history.append((trio.current_time(), c.requests, c.responses, sum(c.rejected.values())))
        self._recent.append((c.request_duration.counts.copy(), c.loop_lag.counts.copy()))


def _quantile(histogram: Histogram, before: Sequence[int], quantile: float) -> float | None:
    """Estimate a quantile of what was observed since `before`, in seconds, as Prometheus would.

    Within a bucket, observations are taken to be even; above the last bound, that bound is returned.
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
    """Tasks of one name in one nursery. times: how many they are; nurseries: of one task, else empty."""

    name: str
    times: int
    nurseries: list[list["Branch"]]


def task_tree(most: int = 200) -> Branch:
    """Return what runs, from Trio's own first task down; after `most` branches, the rest is left out.

    Tasks that have no nurseries of their own, such as those of clients, are put together by name.
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
    """Return a task's name without what says nothing about it."""
    return name.removeprefix("triojam.").replace(".<locals>", "")
