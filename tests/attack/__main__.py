"""The command line; see the package."""

# ruff: noqa: T201  # a command line prints

import argparse
import sys
from collections.abc import Sequence

from tests.attack.hostile import OVER_TLS, PLAIN
from tests.attack.measure import GRACE, WATCHDOG, Impact, measure, quantile
from tests.helpers.sockets import raise_descriptor_limit

TRANSPORTS = ("lane", "portable", "tls")
# The limits of docs/testing.md, "Attacks", in seconds and MiB.
WAIT, BURNED, NEWCOMER, GROWN = 0.1, 0.03, 0.2, 60.0

HEADER = (
    "| attack | over | answers | p99 wait | p99 CPU | longest | newcomer p99 | memory | feeds | stop | |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
)


def faults(impact: Impact, seconds: float) -> list[str]:
    """Return the failed checks."""
    found = [f"{len(impact.failures)} failures: {impact.failures[0]}"] if impact.failures else []
    checks = {
        "p99 wait": quantile(impact.waits, 0.99) <= WAIT,
        "p99 CPU": quantile(impact.burned, 0.99) <= BURNED,
        "newcomers": quantile(impact.newcomers, 0.99) <= NEWCOMER,
        "memory": impact.grown <= GROWN,
        "scrapes": impact.scrapes >= seconds / 2,
        "watchdog": impact.feeds >= seconds / WATCHDOG,
        "stop": impact.stopped <= GRACE + 1 and impact.status == 0,
    }
    return found + [name for name, holds in checks.items() if not holds]


def row(kind: str, transport: str, impact: Impact, found: list[str]) -> str:
    """Format one attack as a row of the table."""
    cells = [
        kind.replace("_", " "),
        transport,
        f"{len(impact.waits)}",
        f"{quantile(impact.waits, 0.99) * 1e3:.1f} ms",
        f"{quantile(impact.burned, 0.99) * 1e3:.1f} ms",
        f"{max(impact.waits, default=0) * 1e3:.0f} ms",
        f"{quantile(impact.newcomers, 0.99) * 1e3:.0f} ms",
        f"{impact.grown:.1f} MiB",
        f"{impact.feeds}",
        f"{impact.stopped:.1f} s",
        ", ".join(found) or "holds",
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 1 if a check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.attack", description=sys.modules["tests.attack"].__doc__
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="the time of each attack")
    parser.add_argument("--kinds", default="", help="names separated by commas; default: all")
    parser.add_argument("--over", default=",".join(TRANSPORTS), help="of lane, portable and tls")
    options = parser.parse_args(argv)
    raise_descriptor_limit()
    wanted = set(filter(None, options.kinds.split(",")))
    print(HEADER)
    failed = False
    for transport in options.over.split(","):
        for kind in OVER_TLS if transport == "tls" else PLAIN:
            if wanted and kind.__name__ not in wanted:
                continue
            impact = measure(kind.__name__, transport, options.seconds)
            found = faults(impact, options.seconds)
            failed = failed or bool(found)
            print(row(kind.__name__, transport, impact, found), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
