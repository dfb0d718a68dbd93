"""`python -m tests [pytest arguments]`: the tests, and how much of the package they reach.

A whole run holds two thresholds: the package's (`fail_under` in pyproject.toml), and all of what decides
about requests. With arguments it is some of the tests, and the coverage is shown without a threshold.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence

# What decides about requests is reached whole, or the accounts may be wrong where nobody has looked.
WHOLE = "*/core/protocol.py,*/serving/client.py,*/serving/handler.py"

PYTEST = (sys.executable, "-m", "coverage", "run", "-m", "pytest")
# Most of what these do is wait for Prometheus: a whole run has them beside the others.
BESIDE = ("tests/lab/test_lab.py",)


def main(arguments: Sequence[str]) -> int:
    """Run pytest under coverage, report, and return the first status that is not 0, pytest's before all."""
    _coverage("erase")  # what another run has left would be combined, too
    status = _pytest(*arguments) if arguments else _pytest_all()
    if combined := _coverage("combine", "--quiet"):
        return status or combined
    if arguments:
        _coverage("report", "--fail-under=0")
        _say("with arguments, coverage is not held to its thresholds")
        return status
    package = _coverage("report")
    _say(f"branch coverage of {WHOLE}:")
    whole = _coverage("report", f"--include={WHOLE}", "--fail-under=100")
    if package:
        _say("FAILED: coverage of the package is below fail_under in pyproject.toml")
    if whole:
        _say(f"FAILED: coverage of {WHOLE} is below 100 %")
    if status:
        _say(f"FAILED: pytest ended with status {status}")
    return status or package or whole


def _pytest_all() -> int:
    with tempfile.TemporaryFile("w+") as output:
        beside = subprocess.Popen([*PYTEST, *BESIDE], stdout=output, stderr=subprocess.STDOUT)
        try:
            status = _pytest(*(f"--ignore={path}" for path in BESIDE))
            other = beside.wait()
        finally:
            beside.kill()
            beside.wait()
        output.seek(0)
        print(output.read(), flush=True)  # noqa: T201  # a command line prints
    return status or other


def _pytest(*arguments: str) -> int:
    return subprocess.run([*PYTEST, *arguments], check=False).returncode


def _say(text: str) -> None:
    print(f"tests: {text}", flush=True)  # noqa: T201  # a command line prints


def _coverage(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
