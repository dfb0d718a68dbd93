"""The benchmark measures right answers: every shape and server for a moment, and no time is looked at."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.requirements import cannot_run

# Those that need nothing beside Python, Trio and a C compiler: both of triojam's paths among them.
FEWEST_SERVERS = 7


def test_every_answer_is_right() -> None:
    """Every server that runs here answers every request of every shape, and rightly."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "smoke"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "apt install gcc" in done.stderr + done.stdout:
        cannot_run("cc is missing: apt install gcc libc6-dev")
    assert done.returncode == 0, done.stdout + done.stderr
    results = [line for line in done.stdout.splitlines() if ": " in line and not line.startswith("skipped")]
    assert len(results) >= FEWEST_SERVERS
    assert all(line.endswith(": right") for line in results), done.stdout
