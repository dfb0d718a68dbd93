"""The command `load`: the first requests, then the load, the readings of the metrics, and the progress."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from triojam.client.session import AskError, Target, connect
from triojam.client.wire.strangers import explain
from triojam.load.crew import TICK_SECONDS, Crew, WorkerError
from triojam.load.measure.connection import Address
from triojam.load.measure.tls import Trust
from triojam.load.plan import Plan
from triojam.load.progress import Show
from triojam.load.readings import OPEN, Access, MetricsError
from triojam.load.reconcile import Reconciliation
from triojam.load.result.result import Moment, Result

# The offset is known well enough if the answer took at most this long.
TIGHT_SECONDS = 0.5
MOST_FIRST_REQUESTS = 5


@dataclass(frozen=True)
class _Server:
    """What the first requests have shown: an address that works, and the offset of the clock ± bound."""

    address: Address
    offset: float
    bound: float


class LoadRun:
    """A load, from the first request to the result.

    trust: for TLS. metrics: the URLs of the servers' metrics, if their counters are to be compared. access:
    what these want. tick: the seconds between two looks at the progress.
    """

    def __init__(  # noqa: PLR0913  # what a load needs
        self,
        target: Target,
        plan: Plan,
        *,
        trust: Trust | None = None,
        metrics: Sequence[str] = (),
        access: Access = OPEN,
        tick: float = TICK_SECONDS,
    ) -> None:
        self._target = target
        self._plan = plan
        self._trust = trust
        self._metrics, self._access = metrics, access
        self._tick = tick
        self._interrupted = False
        self._crew: Crew | None = None
        self._sent = False
        self._last_reading = trio.CancelScope()
        self.result: Result | None = None
        self.failure: str | None = None

    def interrupt(self) -> bool:
        """End early; the second call does not wait for answers. Returns False if there will be no result."""
        if self._crew is None or not self._crew.began:
            return False
        if self._interrupted or self._sent:
            self._crew.cut()
            self._last_reading.cancel()
        else:
            self._crew.stop()
        self._interrupted = True
        return True

    async def run(self, show: Show) -> None:
        """Run the load; sets `result`, or `failure` if it cannot start."""
        try:
            await self._run(show)
        except* AskError as group:
            self.failure = f"{self._target}: {_first(group)}"
        except* (MetricsError, WorkerError) as group:
            self.failure = str(_first(group))

    async def _run(self, show: Show) -> None:
        server = await self._ask_first()
        reconciliation = await Reconciliation.begin(self._metrics, self._access) if self._metrics else None
        chance = random.Random()  # noqa: S311  # not a secret
        crew = self._crew = Crew(self._plan, server.address, chance=chance, tick=self._tick)
        if reconciliation is not None:
            crew.trouble = reconciliation.suspect
        timeline = [Moment(0.0, 0, 0)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time, crew, timeline, show)
            if reconciliation is not None:
                nursery.start_soon(reconciliation.keep_reading)
            await crew.run(server.offset, server.bound, self._trust)
            self._sent = True
            nursery.cancel_scope.cancel()
        self._record(crew.moment(), timeline, show)
        unread = None if reconciliation is None else await self._read_last(reconciliation)
        self.result = Result(
            target=str(self._target),
            plan=self._plan,
            tally=crew.total(),
            seconds=max(crew.seconds - self._plan.warm_up, 0.0),
            counted_seconds=crew.counted_seconds,
            busy=crew.busy,
            timeline=timeline,
            reconciliation=reconciliation,
            unread=unread,
            interrupted=self._interrupted,
            gave_up=crew.gave_up,
            ran=crew.seconds,
        )

    async def _keep_time(self, crew: Crew, timeline: list[Moment], show: Show) -> None:
        """Record and show the progress until cancelled."""
        while True:
            self._record(await crew.next_moment(), timeline, show)

    def _record(self, moment: Moment, timeline: list[Moment], show: Show) -> None:
        if moment.seconds > timeline[-1].seconds:  # a part without any report has no rate
            timeline.append(moment)
            show(self._plan, timeline[-2], moment)

    async def _ask_first(self) -> _Server:
        """Ask until an answer comes fast enough to give the clock's offset. Raises AskError."""
        context = self._trust.context() if self._trust is not None else None
        name = self._trust.name if self._trust is not None else None
        patience = self._plan.patience
        async with await connect(self._target, patience=patience, tls=context, name=name) as session:
            try:
                best = await session.ask(patience=patience)
            except AskError as exc:
                raise await explain(exc, session, self._target, context, name) from exc
            for _ in range(MOST_FIRST_REQUESTS - 1):
                if best.round_trip <= TIGHT_SECONDS:
                    break
                best = min(best, await session.ask(patience=patience), key=lambda each: each.bound)
            return _Server(session.socket_address, best.offset, best.bound)

    async def _read_last(self, reconciliation: Reconciliation) -> str | None:
        """Read the counters at the end; return why that failed."""
        with self._last_reading:
            try:
                await reconciliation.read_last()
            except MetricsError as exc:
                return f"the last reading failed: {exc}"
            return None
        return "interrupted before the last reading"


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return one of the exceptions in a group."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
