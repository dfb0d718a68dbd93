"""What the flags of `load` mean together: the plan and its limits, TLS, and the files for the result."""

import importlib.util
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triojam.cli.servers import parsed, tls_of
from triojam.client.files import check_output, write_whole
from triojam.client.session import Target, certified_name
from triojam.errors import ConfigurationError, invalid_value
from triojam.load.measure.tls import Trust
from triojam.load.plan import Mix, Plan
from triojam.load.result import exports, found
from triojam.load.result.found import Found
from triojam.load.result.goals import Goal
from triojam.load.result.result import Result
from triojam.settings.reading import read_bounded

if sys.platform != "win32":
    import resource

# In seconds: of a load, and of a search, whose trials share them.
DURATION, SEARCH = 10.0, 60.0
# The descriptors of a worker beside its connections.
OWN_DESCRIPTORS = 32
MOST_WORKERS = 64
# A request in a microsecond is more than any client can send.
HIGHEST_RATE = 1e6


def plan_of(*, search: bool, mix: str, rate: str | None, duration: float | None, **others: Any) -> Plan:
    """Make the plan. search: whether it is for --find. others: fields of the plan."""
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


def sought_goal(text: str) -> Goal:
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


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files for a result."""

    json: Path | None
    csv: Path | None
    hgrm: Path | None
    plot: Path | None

    @property
    def takes_stdout(self) -> bool:
        """Whether standard output is for JSON alone."""
        return str(self.json) == "-"

    def check(self) -> None:
        """Find out before the load, rather than after it. Raises ConfigurationError."""
        if self.plot is not None:
            if self.plot.suffix not in (".svg", ".png"):
                raise invalid_value(str(self.plot), "--plot", "a file name that ends in .svg or .png")
            if importlib.util.find_spec("matplotlib") is None:
                raise ConfigurationError("--plot needs matplotlib: pip install 'triojam[plot]'")
        for option, file in (
            ("--json", self.json), ("--csv", self.csv), ("--hgrm", self.hgrm), ("--plot", self.plot),
        ):  # fmt: skip
            if not (option == "--json" and self.takes_stdout):
                check_output(option, file)

    def write(self, result: Result) -> None:
        """Write the files of a load. Raises OSError."""
        self._write_json(exports.as_json(result))
        for file, render in ((self.csv, exports.as_csv), (self.hgrm, exports.as_hgrm)):
            if file is not None:
                write_whole(file, render(result).encode())
        if self.plot is not None:
            from triojam.load.result.plot import save_plot  # noqa: PLC0415  # an extra

            save_plot(result, self.plot)

    def write_found(self, what: Found) -> None:
        """Write the files of a search. Raises OSError."""
        self._write_json(found.as_json(what))
        if self.plot is not None and what.search.trials:
            from triojam.load.result.found_plot import save_plot  # noqa: PLC0415  # an extra

            save_plot(what, self.plot)

    def _write_json(self, text: str) -> None:
        if self.takes_stdout:
            sys.stdout.write(text)
            sys.stdout.flush()
        elif self.json is not None:
            write_whole(self.json, text.encode())
