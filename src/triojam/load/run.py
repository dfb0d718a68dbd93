"""The command `load`: one request first, then the load, the readings of the metrics and the progress bar."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from triojam.client.render import format_seconds
from triojam.client.session import AskError, Target, connect
from triojam.load.measure.clock import ServerClock
from triojam.load.measure.generator import LoadGenerator
from triojam.load.plan import Plan
from triojam.load.readings import MetricsError
from triojam.load.reconcile import Reconciliation
from triojam.load.result.percentiles import Percentiles
from triojam.load.result.result import Moment, Result

TICK_SECONDS = 0.25

Show = Callable[[LoadGenerator, Moment], None]


class LoadRun:
    """A load, from the first request to the result.

    metrics: the URLs of the servers' metrics, if their counters are to be compared with the load.
    """

    def __init__(self, target: Target, plan: Plan, *, metrics: Sequence[str] = ()) -> None:
        self._target = target
        self._plan = plan
        self._metrics = metrics
        self._interrupted = False
        self._load: LoadGenerator | None = None
        self._sent = False
        self._last_reading = trio.CancelScope()
        self.result: Result | None = None
        self.failure: str | None = None

    def interrupt(self) -> bool:
        """End early; the second call does not wait for answers. Returns False if there will be no result."""
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
        """Run the load; sets `result`, or `failure` if it cannot start."""
        try:
            await self._run(show)
        except AskError as exc:
            self.failure = f"{self._target}: {exc}"
        except MetricsError as exc:
            self.failure = str(exc)

    async def _run(self, show: Show) -> None:
        # The first request finds an address that works and the clock's offset, or a reason why there is none.
        async with await connect(self._target, patience=self._plan.patience) as session:
            answer = await session.ask(patience=self._plan.patience)
        reconciliation = await Reconciliation.begin(self._metrics) if self._metrics else None
        clock = ServerClock.of_this_machine(answer.offset)
        chance = random.Random()  # noqa: S311  # not a secret
        load = self._load = LoadGenerator(self._plan, session.socket_address, clock, chance=chance)
        timeline = [Moment(0.0, 0, 0)]
        used = time.process_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_time, load, timeline, show)
            if reconciliation is not None:
                nursery.start_soon(reconciliation.keep_reading)
            await load.run()
            self._sent = True
            nursery.cancel_scope.cancel()
        seconds = load.ended - load.began
        busy = (time.process_time() - used) / max(seconds, 1e-9)
        timeline.append(_moment(load))
        unread = None if reconciliation is None else await self._read_last(reconciliation)
        self.result = Result(
            target=str(self._target),
            plan=self._plan,
            tally=load.tally,
            seconds=seconds,
            busy=busy,
            timeline=timeline,
            reconciliation=reconciliation,
            unread=unread,
            interrupted=self._interrupted,
            gave_up=load.gave_up,
        )

    async def _read_last(self, reconciliation: Reconciliation) -> str | None:
        """Read the counters at the end; return why that failed."""
        with self._last_reading:
            try:
                await reconciliation.read_last()
            except MetricsError as exc:
                return f"the last reading failed: {exc}"
            return None
        return "interrupted before the last reading"


async def _keep_time(load: LoadGenerator, timeline: list[Moment], show: Show) -> None:
    """Record and show the progress until cancelled."""
    while True:
        await trio.sleep(TICK_SECONDS)
        timeline.append(_moment(load))
        show(load, timeline[-1])


def _moment(load: LoadGenerator) -> Moment:
    return Moment(load.elapsed, load.tally.settled, load.tally.failed.total())


@contextmanager
def progress(plan: Plan, console: Console) -> Iterator[Show]:
    """Yield a function that shows the progress: a bar with rate, failures and p99, only on a terminal."""
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
            text = f"{rate:>9,.0f}/s  {moment.failed:,} failed  p99 {format_seconds(p99)}"
            bar.update(task, completed=min(done, total), description=text, refresh=True)

        yield show
