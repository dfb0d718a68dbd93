"""When a load sends how much."""

from collections import deque
from dataclasses import dataclass
from math import inf

from triojam.mix import PLAIN_MIX, Mix


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send.

    requests: stop after so many; None = after `seconds`. pipeline: so many at once on each connection.
    visits: connect, ask, close, each time anew. rate: a second, in an open loop; None = closed loop.
    think_time: of each connection between an answer and the next request, in seconds. patience: for an
    answer, in seconds; then the connection is given up.
    """

    connections: int = 50
    seconds: float = 10.0
    requests: int | None = None
    pipeline: int = 1
    visits: bool = False
    rate: float | None = None
    think_time: float = 0.0
    patience: float = 5.0
    mix: Mix = PLAIN_MIX


class Schedule:
    """When which requests are due."""

    def __init__(self, plan: Plan, began: float) -> None:
        self._rate = plan.rate
        self._began = began
        self._ends = began + plan.seconds if plan.requests is None else inf
        self._left = inf if plan.requests is None else plan.requests
        self._begun = 0
        self._again: deque[float] = deque()

    def over(self, now: float) -> bool:
        """Whether there will be no more requests."""
        return self._left <= 0 if now < self._ends else True

    def next_due(self) -> float:
        """Return when the next request is due; in a closed loop that is at once."""
        if self._rate is None or self._again:
            return self._began
        return self._began + self._begun / self._rate

    def take(self, most: int, now: float) -> list[float]:
        """Return when the next requests were due, at most so many, and none that is not due yet."""
        due: list[float] = []
        while len(due) < most and not self.over(now) and (when := self.next_due()) <= now:
            if self._rate is None:
                when = now
            elif self._again:
                when = self._again.popleft()
            else:
                self._begun += 1
            due.append(when)
            self._left -= 1
        return due

    def give_back(self, due: list[float]) -> None:
        """These were not sent."""
        self._left += len(due)
        if self._rate is not None:
            self._again.extend(due)

    def stop(self) -> None:
        """No more requests."""
        self._left = 0
