"""The benchmark checks answers: each shape and each server runs for a moment, without a look at speed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.program import UNMEASURED, environment
from tests.helpers.requirements import cannot_run

# The servers that need only Python, Trio and a C compiler; both paths of triojam are among them.
FEWEST_SERVERS = 7


@pytest.mark.xdist_group("crowds")
def test_every_answer_is_right() -> None:
    """Each server that runs here gives the right answer to each request of each shape."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "smoke"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment(**UNMEASURED, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    if "apt install gcc" in done.stderr + done.stdout:
        cannot_run("cc is missing: apt install gcc libc6-dev")
    assert done.returncode == 0, done.stdout + done.stderr
    results = [line for line in done.stdout.splitlines() if ": " in line and not line.startswith("skipped")]
    assert len(results) >= FEWEST_SERVERS
    assert all(line.endswith(": right") for line in results), done.stdout
