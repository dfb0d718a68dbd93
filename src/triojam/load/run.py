"""The command `load`: one question first, then the load, with what goes on beside it."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from triojam.client.render import format_seconds
from triojam.client.session import AskError, Target, connect
from triojam.client.time_of_day import DAY, second_of_day
from triojam.load.checker import ServerClock
from triojam.load.generator import LoadGenerator
from triojam.load.plan import Plan
from triojam.load.reconcile import MetricsError, first_reading, keep_reading, last_reading
from triojam.load.report import Moment, Percentiles, Result

TICK_SECONDS = 0.25

Show = Callable[[LoadGenerator, Moment], None]


class LoadRun:
    """One load, from the first question to its result.

    metrics: where the server's counters are read, if they are to be held against the load.
    """

    def __init__(
        self, target: Target, plan: Plan, *, metrics: str | None, chance: random.Random | None = None
    ) -> None:
        self._target = target
        self._plan = plan
        self._metrics = metrics
        self._chance = chance or random.Random()  # noqa: S311  # no secret
        self._interrupted = False
        self._load: LoadGenerator | None = None
        self._sent = False
        self._last_reading = trio.CancelScope()
        self.result: Result | None = None
        self.failure: str | None = None

    def interrupt(self) -> bool:
        """End early: the second time without waiting for answers. False if there is no result to wait for."""
        if self._load is None:
            return False
        if self._interrupted or self._sent:
            self._load.cut()
            self._last_reading.cancel()
        else:
            self._load.stop()
        self._interrupted = True
        return True

    async def run(self, show: Show) -> None:
        """Do it all; sets `result`, or `failure` if it cannot begin."""
        try:
            await self._run(show)
        except AskError as exc:
            self.failure = f"{self._target}: {exc}"
        except MetricsError as exc:
            self.failure = str(exc)

    async def _run(self, show: Show) -> None:
        # It says in words what is wrong with a server, finds the address that works, and the clock's offset.
        async with await connect(self._target, patience=self._plan.patience) as session:
            answer = await session.ask(patience=self._plan.patience)
        balance = await first_reading(self._metrics) if self._metrics is not None else None
        ahead = second_of_day(time.time(), None) + answer.offset - time.perf_counter()
        load = self._load = LoadGenerator(
            self._plan,
            session.socket_address,
            ServerClock(lambda now: (now + ahead) % DAY),
            chance=self._chance,
        )
        timeline = [Moment(0.0, 0, 0)]
        used = time.process_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_time, load, timeline, show)
            if self._metrics is not None and balance is not None:
                nursery.start_soon(keep_reading, self._metrics, balance)
            await load.run()
            self._sent = True
            nursery.cancel_scope.cancel()
        seconds = load.ended - load.began
        busy = (time.process_time() - used) / max(seconds, 1e-9)
        timeline.append(_moment(load))
        unread: str | None = None
        if self._metrics is not None and balance is not None:
            unread = "interrupted before the last reading"
            try:
                with self._last_reading:
                    await last_reading(self._metrics, balance)
                    unread = None
            except MetricsError as exc:
                unread = f"the last reading failed: {exc}"
        self.result = Result(
            target=str(self._target),
            plan=self._plan,
            tally=load.tally,
            seconds=seconds,
            busy=busy,
            timeline=timeline,
            balance=balance,
            unread=unread,
            interrupted=self._interrupted,
            gave_up=load.gave_up,
        )


async def _keep_time(load: LoadGenerator, timeline: list[Moment], show: Show) -> None:
    """Note how far the load is, now and then, until cancelled."""
    while True:
        await trio.sleep(TICK_SECONDS)
        timeline.append(_moment(load))
        show(load, timeline[-1])


def _moment(load: LoadGenerator) -> Moment:
    return Moment(load.elapsed, load.tally.settled, load.tally.failed.total())


@contextmanager
def progress(plan: Plan, console: Console) -> Iterator[Show]:
    """Open a progress bar with rate, errors and the current p99; nothing where there is no terminal."""
    if not console.is_terminal:
        yield lambda _load, _moment: None
        return
    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        total = plan.seconds if plan.requests is None else plan.requests
        task = bar.add_task("", total=total)
        before, seen = Moment(0.0, 0, 0), Counter[int]()

        def show(load: LoadGenerator, moment: Moment) -> None:
            nonlocal before, seen
            rate = (moment.settled - before.settled) / max(moment.seconds - before.seconds, 1e-9)
            p99 = Percentiles(load.tally.latencies - seen).at(99)
            before, seen = moment, load.tally.latencies.copy()
            done = moment.seconds if plan.requests is None else moment.settled + moment.failed
            said = f"{rate:>9,.0f}/s  {moment.failed:,} failed  p99 {format_seconds(p99)}"
            bar.update(task, completed=min(done, total), description=said, refresh=True)

        yield show
