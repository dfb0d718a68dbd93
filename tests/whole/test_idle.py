"""Ten thousand connections that mostly do nothing."""

import resource
import subprocess
import sys
from pathlib import Path

from tests.helpers.idle import SPARE_DESCRIPTORS
from tests.helpers.program import environment
from tests.helpers.requirements import cannot_run

CONNECTIONS = 10_000
ROOT = Path(__file__).parents[2]


def test_ten_thousand_idle_connections_are_each_answered_twice() -> None:
    """10,000 connections are held at once, and each is answered, and after a while of nothing again."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CONNECTIONS + SPARE_DESCRIPTORS:
        cannot_run(f"needs {CONNECTIONS + SPARE_DESCRIPTORS} file descriptors, and the hard limit is {hard}")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.helpers.idle", "--connections", str(CONNECTIONS)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"answered: {CONNECTIONS} and {CONNECTIONS} of {CONNECTIONS}" in ended.stdout
    assert ended.returncode == 0
