"""What the flags of `load` mean together: the plan and its limits, the goals, and TLS."""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triojam.cli.servers import parsed, tls_of
from triojam.client.session import Target, certified_name
from triojam.errors import ConfigurationError, invalid_value
from triojam.load.measure.tls import Trust
from triojam.load.plan import Mix, Plan
from triojam.load.result.goals import Goal
from triojam.settings.reading import read_bounded

if sys.platform != "win32":
    import resource

# In seconds: of a load, and of a search, whose trials share them.
DURATION, SEARCH = 10.0, 60.0
# The trials of a shorter search would measure the machine's hiccups.
SHORTEST_SEARCH = 10.0
# The descriptors of a worker beside its connections.
OWN_DESCRIPTORS = 32
MOST_WORKERS = 64
# A request in a microsecond is more than any client can send.
HIGHEST_RATE = 1e6


def plan_of(*, search: bool, mix: str, rate: str | None, duration: float | None, **others: Any) -> Plan:
    """Make the plan. search: whether it is for --find. others: fields of the plan."""
    if duration is not None and others["requests"] is not None:
        raise ConfigurationError("--duration is not for --requests: the load ends after that many")
    if search and duration is not None and duration < SHORTEST_SEARCH:
        raise invalid_value(f"{duration:g}", "--duration", f"at least {SHORTEST_SEARCH:g} s for --find")
    rates = parsed("--rate", _rates, rate) if rate is not None else []
    if search and len(rates) > 1:
        raise invalid_value(str(rate), "--rate", "one rate, at which --find begins")
    workers, connections = others["workers"], others["connections"]
    if workers > MOST_WORKERS:
        raise invalid_value(str(workers), "--workers", f"a whole number from 1 to {MOST_WORKERS}")
    if workers > connections:
        raise invalid_value(str(workers), "--workers", f"not more than --connections ({connections})")
    return Plan(
        mix=parsed("--mix", Mix.parse, mix),
        rate=rates[0] if rates else None,
        last_rate=rates[1] if len(rates) > 1 else None,
        seconds=duration or (SEARCH if search else DURATION),
        **others,
    )


def goals_of(fail: Sequence[str], find: str | None, **not_for_find: object) -> tuple[list[Goal], Goal | None]:
    """Parse --fail and --find. not_for_find: the values of options that a search does not take, by name."""
    goals = [parsed("--fail", Goal.parse, each) for each in fail]
    if find is None:
        return goals, None
    sought = parsed("--find", _sought, find)
    for name, given in {"fail": fail, **not_for_find}.items():
        if given:
            raise ConfigurationError(f"--{name} is not for --find")
    return goals, sought


def _sought(text: str) -> Goal:
    """Parse a goal that a higher rate can break. Raises ValueError that says what is expected."""
    goal = Goal.parse(text)
    if ">" in goal.comparison or goal.quantity in ("rate", "answered"):
        raise ValueError("a latency or failed with < or <=, such as p99<5ms")
    return goal


def _rates(text: str) -> list[float]:
    """Parse RATE or FIRST:LAST. Raises ValueError that says what is expected."""
    rates = []
    for part in text.split(":"):
        try:
            rates.append(float(part))
        except ValueError:
            rates.append(math.nan)
    if len(rates) > 2 or not all(0 < each <= HIGHEST_RATE for each in rates):
        raise ValueError(f"requests a second, above 0 and up to {HIGHEST_RATE:,.0f}, or FIRST:LAST")
    return rates


def check_connections(plan: Plan) -> None:
    """Let each worker have as many open files as it has connections. Raises ConfigurationError."""
    if sys.platform == "win32":
        raise ConfigurationError("load needs a system with file descriptors, such as Linux or macOS")
    needed = math.ceil(plan.connections / plan.workers) + OWN_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        most = max(hard - OWN_DESCRIPTORS, 0)
        raise invalid_value(
            str(plan.connections),
            "--connections",
            f"up to {most} for each of --workers: a process may open {hard} files (ulimit -Hn)",
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def trust_of(
    target: Target, *, tls: bool, ca: Path | None, cert: Path | None, key: Path | None, name: str | None
) -> Trust | None:
    """Check the flags of TLS; None = plain TCP."""
    if tls_of(tls=tls, ca=ca, cert=cert, key=key, name=name) is None:
        return None
    # For an empty text, Python would trust the certificates of the system.
    authorities = (read_bounded(str(ca)).decode("ascii") or "\n") if ca is not None else None
    identity = (cert, key) if cert is not None else None
    return Trust(certified_name(name or target.host), authorities, identity)
