"""When the requests of a load are due."""

from collections import deque
from math import ceil, inf

from triojam.load.plan import Plan


class Schedule:
    """When requests are due.

    A closed loop ends at `ends`. An open loop ends when all requests that were due by then are sent.
    """

    def __init__(self, plan: Plan, began: float) -> None:
        self.ends = began + plan.seconds if plan.requests is None else inf
        self._rate = plan.rate
        self._began = began
        self._requests = inf if plan.requests is None else plan.requests
        self._taken = 0  # without those given back
        self._begun = 0  # how many times of an open loop were taken
        self._again: deque[float] = deque()
        self._stopped = False

    def stop(self, now: float) -> None:
        """End the schedule: no more requests are due."""
        self.ends = min(self.ends, now)
        self._stopped = True

    def over(self, now: float) -> bool:
        """Whether no more requests will be due."""
        return self.next_due(now) == inf

    def next_due(self, now: float) -> float:
        """Return when the next request is due: at once in a closed loop; inf if there is none."""
        if self._stopped or self._taken >= self._requests or (self._rate is None and now >= self.ends):
            return inf
        if self._rate is None or self._again:
            return self._began
        due = self._began + self._begun / self._rate
        return due if due < self.ends else inf

    def take(self, most: int, now: float) -> list[float]:
        """Take up to `most` requests that are due by now; return when each was due."""
        due: list[float] = []
        while len(due) < most and (when := self.next_due(now)) <= now:
            if self._rate is None:
                when = now
            elif self._again:
                when = self._again.popleft()
            else:
                self._begun += 1
            due.append(when)
            self._taken += 1
        return due

    def give_back(self, due: list[float]) -> None:
        """Return requests that were taken, but not sent."""
        self._taken -= len(due)
        if self._rate is not None:
            self._again.extend(due)

    def never_sent(self, now: float) -> int:
        """Return how many requests of an open loop were due by now, but not taken."""
        if self._rate is None:
            return 0
        until = min(now, self.ends)
        due = ceil((until - self._began) * self._rate)
        while due and self._began + (due - 1) / self._rate >= until:  # a rounding error
            due -= 1
        return max(0, int(min(due, self._requests)) - self._taken)
