"""The command line: `python -m tests.soak --minutes 60`. Exit status 1 if anything is not as it must be."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from tests.soak import judge
from tests.soak.course import soak

def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="An hour of everything at once.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--round", type=float, default=60)
    parser.add_argument("--restart", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    o = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        course, record, restarts = trio.run(partial(soak, Path(folder), seconds=o.minutes * 60, round_seconds=o.round, restart_every=o.restart, seed=o.seed))
    for r in record.rests:
        print(round(r.seconds), r.resident, r.anonymous, r.descriptors, sum(r.tasks.values()), r.cpu, r.unaccounted)
    for r in record.rounds:
        l = sorted(r.kept); f = sorted(r.fresh)
        if l: print(len(l), l[len(l)//2], l[-len(l)//100], l[-1], f[len(f)//2], f[-1])
    print(record.honest, restarts)
    print(record.last.counts)
    faults = judge.judge(record)
    print(*faults, sep="\n")
    return bool(faults)

if __name__ == "__main__":
    sys.exit(main())
