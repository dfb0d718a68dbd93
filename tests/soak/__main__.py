"""The command line; see the package."""

# ruff: noqa: T201  # a command line prints

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.helpers.sockets import raise_descriptor_limit
from tests.soak.judge import judge
from tests.soak.picture import draw
from tests.soak.record import Record
from tests.soak.report import figures, markdown, write
from tests.soak.rounds import soak

# The extra time of a slow machine to end its last round, in seconds.
PATIENCE = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 1 if a check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=sys.modules["tests.soak"].__doc__
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="the length of the run")
    parser.add_argument("--round", type=float, default=60.0, help="from one rest to the next, in seconds")
    parser.add_argument(
        "--restart",
        type=float,
        default=30.0,
        help="the life of a process of the second server, in seconds",
    )
    parser.add_argument(
        "--prompt", type=float, default=0.1, help="the limit of the p99 wait of a good client, in seconds"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--out", type=Path, default=Path("soak"), help="folder for figures and plot")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    raise_descriptor_limit()

    async def run(folder: Path) -> Record:
        with trio.fail_after(options.minutes * 60 + PATIENCE):
            return await soak(
                folder,
                seconds=options.minutes * 60,
                round_seconds=options.round,
                restart_every=options.restart,
                seed=options.seed,
            )

    with tempfile.TemporaryDirectory() as folder:
        record = trio.run(run, Path(folder))
    faults = judge(record, prompt=options.prompt)
    found = figures(record, faults)
    table = markdown(record, found)
    print(table)
    write(options.out, found, table)
    draw(record, options.out / "soak.svg")
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
