"""The parts of a load, one after the other: rates that were due and reached, and the line of progress."""

from collections.abc import Sequence
from itertools import pairwise

from triojam.client.render import format_seconds
from triojam.load.plan import Plan
from triojam.load.result.result import Moment


def parts(timeline: Sequence[Moment]) -> list[tuple[Moment, Moment]]:
    """Return each part of a load as two moments: the end of the part before it, and its own end."""
    moments = [Moment(0.0, 0, 0), *timeline]
    return [(before, now) for before, now in pairwise(moments) if now.seconds > before.seconds]


def rate_answered(before: Moment, now: Moment) -> float:
    """Return the right answers a second in a part."""
    return (now.settled - before.settled) / max(now.seconds - before.seconds, 1e-9)


def rate_due(plan: Plan, before: Moment, now: Moment) -> float | None:
    """Return the requests a second that were due in a part; None in a closed loop."""
    if plan.rate is None:
        return None
    due = _due(plan, plan.rate, now.seconds) - _due(plan, plan.rate, before.seconds)
    return due / max(now.seconds - before.seconds, 1e-9)


def is_within_plan(plan: Plan, before: Moment, now: Moment) -> bool:
    """Whether a part of an open loop is after the warm-up, and requests were due until its end."""
    lasts = 0.0 if plan.rate is None else _lasts(plan, plan.rate)
    return before.seconds >= plan.warm_up and now.seconds <= plan.warm_up + lasts


def line_of(before: Moment, now: Moment, plan: Plan) -> str:
    """Describe a part of a load in a line: its rate and its latencies, and all failures so far."""
    rate = f"{format_rate(rate_answered(before, now))}/s"
    if plan.rate is not None:
        rate += f" of {format_rate(rate_due(plan, before, now) or 0.0)}/s due"
    failed = f"{now.failed:,} failed" + (" so far" if now.failed else "")
    words = [f"{now.seconds:,.1f}".removesuffix(".0") + " s", rate, failed]
    if now.is_measured:
        named = (("p50", now.p50), ("p99", now.p99), ("longest", now.longest))
        words += [f"{name} {format_seconds(value)}" for name, value in named]
    if now.seconds <= plan.warm_up:
        words.append("warm-up")
    return "  ".join(words)


def format_rate(rate: float) -> str:
    """Render a rate, with three digits below 100."""
    return f"{rate:.3g}" if rate < 99.95 else f"{rate:,.0f}"


def _due(plan: Plan, first: float, seconds: float) -> float:
    """Return how many requests of an open loop are due by then; the rate of the warm-up is the first one."""
    last, lasts = plan.last_rate or first, _lasts(plan, first)
    warm, measured = min(seconds, plan.warm_up), min(max(seconds - plan.warm_up, 0.0), lasts)
    return first * (warm + measured) + (last - first) * measured**2 / (2 * lasts)


def _lasts(plan: Plan, first: float) -> float:
    """Return for how long requests of an open loop are due, without the warm-up."""
    return plan.seconds if plan.requests is None else 2 * plan.requests / (first + (plan.last_rate or first))
