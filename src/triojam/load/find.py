"""The search of `load --find`: a load for each trial, one after the other."""

from dataclasses import replace

from triojam.client.session import Target
from triojam.load.crew import TICK_SECONDS
from triojam.load.measure.tls import Trust
from triojam.load.plan import Plan
from triojam.load.progress import Show
from triojam.load.result.found import Found
from triojam.load.result.goals import Goal
from triojam.load.result.percentiles import needed
from triojam.load.result.result import Result
from triojam.load.run import LoadRun
from triojam.load.search import Search, Trial

TRIALS = 20
# With more than these shares of requests that the client left out, or sent late, a trial shows no limit of
# the server.
LEFT_OUT, LATE_SHARE = 0.02, 0.2
FIRST_RATE = 1000.0


class FindRun:
    """A search for the highest rate within a goal.

    plan: its rate is the first one; its seconds are those of all trials together.
    """

    def __init__(
        self,
        target: Target,
        plan: Plan,
        goal: Goal,
        *,
        trust: Trust | None = None,
        tick: float = TICK_SECONDS,
    ) -> None:
        self._target, self._goal, self._trust, self._tick = target, goal, trust, tick
        self._plan = replace(plan, seconds=plan.seconds / TRIALS)
        # A trial at a lower rate would have too few answers for the percentile.
        lowest = needed(goal.percentile or 0) / self._plan.seconds
        self._search = Search(max(plan.rate or FIRST_RATE, lowest), budget=TRIALS, lowest=lowest)
        self._trial: LoadRun | None = None
        self._interrupted = False
        self.found: Found | None = None
        self.failure: str | None = None

    def interrupt(self) -> bool:
        """End early, with what is known. Returns False if there will be no result."""
        self._interrupted = True
        return self._trial is not None and (self._trial.interrupt() or bool(self._search.trials))

    async def run(self, show: Show) -> None:
        """Run the trials; sets `found`, and `failure` if a trial cannot start."""
        while (rate := self._search.next_rate()) is not None and not self._interrupted:
            plan = replace(self._plan, rate=rate)
            trial = self._trial = LoadRun(self._target, plan, trust=self._trust, tick=self._tick)
            await trial.run(show)
            if trial.failure is not None or trial.result is None or trial.result.interrupted:
                self.failure = trial.failure
                break
            self._search.record(judged(trial.result, self._goal, rate, self._plan.seconds))
        if self.failure is not None and not self._search.trials:
            return
        self.found = Found(
            target=str(self._target),
            goal=self._goal.text,
            figure=self._goal.quantity,
            limit=self._goal.highest,
            shown=self._goal.shown,
            search=self._search,
            interrupted=self._interrupted,
        )


def judged(result: Result, goal: Goal, rate: float, seconds: float) -> Trial:
    """Say what a load at this rate has shown. seconds: in which requests were due."""
    tally = result.tally
    within, left_out = goal.broken(result) is None, tally.left_out > LEFT_OUT * result.due
    return Trial(
        rate=rate,
        within=within,
        achieved=(tally.settled - tally.warmed_up) / seconds,
        figure=goal.figure(result),
        # Requests that are late come in bursts, which are harder to answer: a goal that is met counts.
        client_limited=left_out or (not within and tally.late > LATE_SHARE * tally.sent),
    )
