"""When the requests of a load are due, and from when their latency counts.

An open loop has requests that are due at certain times. Such a request can be sent late for two reasons.
Either the server keeps all connections busy, and the client waits: this part of the delay belongs to the
latency. Or the client itself is too slow: this part does not, and is counted apart.

Each connection has its own reckoning: when would it have been free if the client had never been late? From
then on, or from when the request was due if that is later, the delay is the client's own. This delay is added
up along a connection, not along the load: while the client is busy with one connection, the server works for
the others, so that the client does not delay those.
"""

from collections import deque
from math import ceil, inf, sqrt

from triojam.load.measure.tally import LATE, Tally
from triojam.load.plan import Plan

# Up to this number, requests that were never sent are in the percentiles one by one; of more, a selection.
_MOST_NEVER_SENT = 10_000
# Of a long delay, the client's own part counts only if it is more than this share. If it is less, the server
# is the limit: it has worked meanwhile, and a faster client would have waited longer.
_OWN_SHARE = 0.5


class Schedule:
    """When the requests of one worker are due.

    A closed loop has requests due at any time until `ends`. An open loop ends when the requests that were due
    by then are sent, or given up. began: when the load begins. worker: the number of the worker.
    own_delay: for how long the client itself has delayed the request that was taken last.
    """

    def __init__(self, plan: Plan, began: float, tally: Tally, worker: int = 0) -> None:
        self.measured_from = began + plan.warm_up
        self.own_delay = 0.0
        self._tally = tally
        self._began = began
        self._rate, self._worker, self._workers = plan.rate, worker, plan.workers
        self._stopped = False
        self._numbered = plan.requests is not None
        self._again: deque[float] = deque()  # sent once already: from when their latency counts
        self._begun = 0
        if plan.rate is None:
            self._left = inf if plan.requests is None else _share(plan.requests, worker, plan.workers)
            self.ends = inf if plan.requests is not None else self.measured_from + plan.seconds
            self._gives_up_at = inf
            return
        self._first, self._last = plan.rate, plan.last_rate or plan.rate
        self._warm = plan.rate * plan.warm_up
        seconds = plan.seconds if plan.requests is None else plan.requests * 2 / (self._first + self._last)
        self._bend = (self._last - self._first) / seconds
        self.ends = self.measured_from + seconds
        if plan.requests is None:
            self._last_one = self._due_before(self.ends)
        else:
            self._last_one = _share(ceil(self._warm) + plan.requests, worker, plan.workers)
        self._gives_up_at = self.ends + plan.patience
        self._may_leave_out = plan.requests is None

    def stop(self, now: float) -> None:
        """End the schedule: no more requests are due."""
        self.ends = min(self.ends, now)
        self._stopped = True
        if self._rate is not None:
            self._last_one = min(self._last_one, self._due_before(self.ends))

    def over(self, now: float) -> bool:
        """Whether no more requests will be due. A duration lasts to its end, after its last request."""
        return self.next_due(now) == inf and (self._numbered or now >= self.ends)

    def next_due(self, now: float) -> float:
        """Return when the next request is due: at once in a closed loop; inf if there is none."""
        if self._stopped:
            return inf
        if self._rate is None:
            return self._began if self._left > 0 and now < self.ends else inf
        if now >= self._gives_up_at:
            return inf
        if self._again:
            return self._began
        return self._due(self._begun) if self._begun < self._last_one else inf

    def take(self, most: int, now: float, free: float = 0.0) -> list[float]:
        """Take up to `most` requests that are due by now; return from when the latency of each counts.

        free: when their connection would have been free if the client had never been late.
        """
        if self._rate is None:
            if self._stopped or not self._began <= now < self.ends:
                return []
            taken = int(min(most, self._left))
            if now >= self.measured_from:
                self._left -= taken
            return [now] * taken
        if now >= self.ends and self._may_leave_out:
            self._leave_out(now, free)
        starts: list[float] = []
        while len(starts) < most and (due := self.next_due(now)) <= now:
            if self._again:
                due = self._again.popleft()
                self.own_delay = now - max(due, free)
                starts.append(due)
            else:
                self._begun += 1
                starts.append(self._start_of(due, now, free))
        return starts

    def give_back(self, starts: list[float]) -> None:
        """Return requests that were taken, but not sent."""
        if self._rate is None:
            self._left += sum(start >= self.measured_from for start in starts)
        else:
            self._again.extend(starts)

    def give_up(self, now: float) -> None:
        """Count the requests of an open loop that were due by now, but not sent. Call it once, at the end."""
        if self._rate is None:
            return
        due = min(self._due_before(min(now, self.ends)), self._last_one)
        missing = max(0, due - self._begun)
        self._tally.never_sent += missing + len(self._again)
        for start in self._again:
            self._tally.longer[int((now - start) * 1e6)] += 1
        step = max(1, ceil(missing / _MOST_NEVER_SENT))
        for number in range(0, missing, step):
            waited = max(0.0, now - self._due(self._begun + number))
            self._tally.longer[int(waited * 1e6)] += min(step, missing - number)
        self._again.clear()
        self._begun += missing

    def _start_of(self, due: float, now: float, free: float) -> float:
        """Return from when the latency counts: from `due`, without the delay that is the client's own."""
        late = self.own_delay = max(now - max(due, free), 0.0)
        if due < self.measured_from:  # it is not measured
            return due
        if late > LATE:
            if late <= _OWN_SHARE * (now - due):
                return due
            self._tally.late += 1
            self._tally.latest = max(self._tally.latest, late)
        return due + late

    def _leave_out(self, now: float, free: float) -> None:
        """At the end, leave out what is still to be sent if that is the client's fault."""
        self._may_leave_out = False
        if self._begun < self._last_one:
            due = self._due(self._begun)
            late = now - max(due, free)
            if late > max(LATE, _OWN_SHARE * (now - due)):
                self._tally.left_out += self._last_one - self._begun
                self._tally.latest = max(self._tally.latest, late)
                self._last_one = self._begun

    def _due(self, number: int) -> float:
        """Return when the request with this number, counted from 0, of this worker is due."""
        index = number * self._workers + self._worker
        if index < self._warm:
            return self._began + index / self._first
        beyond = index - self._warm
        # The inverse of first * t + bend * t² / 2, in a form that is exact for a bend of 0.
        root = sqrt(max(0.0, self._first * self._first + 2 * self._bend * beyond))
        return self.measured_from + 2 * beyond / (self._first + root)

    def _due_before(self, moment: float) -> int:
        """Return how many requests of this worker are due before a moment."""
        low, high = 0, 1
        while self._due(high) < moment and high < 1 << 50:
            low, high = high, high * 2
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._due(middle) < moment else (low, middle)
        return low


def _share(number: int, worker: int, workers: int) -> int:
    """Return how many of `number` things, dealt in turn, belong to a worker."""
    return number // workers + (worker < number % workers)
