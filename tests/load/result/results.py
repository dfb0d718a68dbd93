"""Results of loads, built by hand."""

from collections import Counter
from typing import Any

from triojam.load.measure.tally import Tally
from triojam.load.plan import Mix, Plan
from triojam.load.result.result import Moment, Result

MIXED, BAD = Mix.parse("TIME:19,HELLO:1"), Mix.parse("HELLO:1")


def make(plan: Plan | None = None, *, tally: Tally | None = None, **more: Any) -> Result:
    """Make a result; without a tally, of 10 seconds with one answer."""
    given: dict[str, Any] = {"target": "a:1", "plan": plan or Plan(), "seconds": 10.0, "busy": 0.3} | more
    return Result(tally=tally or answers({40: 1}), **given)


def answers(
    latencies: dict[int, int], *, rejected: int = 0, longer: dict[int, int] | None = None, **more: Any
) -> Tally:
    """Make a tally from latencies in microseconds. longer: requests that had no answer in time."""
    tally = Tally(latencies=Counter(latencies), longer=Counter(longer or {}), rejected=rejected)
    tally.answered = tally.latencies.total() - rejected
    if longer:
        tally.failed["no answer in time"] = tally.longer.total()
    tally.sent = tally.settled + tally.failed.total()
    for name, value in more.items():
        setattr(tally, name, value)
    return tally


def timeline(*rows: tuple[float, int, int]) -> list[Moment]:
    """Make the moments of a load from seconds, answers and failures; their latencies are the same."""
    moments = [Moment(0.0, 0, 0)]
    for row in rows:
        same: dict[str, Any] = (
            {"p50": 40e-6, "p99": 0.0011, "longest": 0.5} if row[1] > moments[-1].settled else {}
        )
        moments.append(Moment(*row, **same))
    return moments[1:]
