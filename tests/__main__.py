"""`python -m tests [pytest arguments]`: the tests, and how much of the package they reach.

A whole run holds two thresholds: the package's (`fail_under` in pyproject.toml), and all of what decides
about requests. With arguments it is some of the tests, and the coverage is shown without a threshold.
"""

import subprocess
import sys
from collections.abc import Sequence

# These decide about requests. They are reached whole: an untested line could make the accounts wrong.
WHOLE = "*/core/protocol.py,*/serving/client.py,*/serving/handler.py"

# Most tests wait for processes or deadlines, so two cores run four tests at once.
# Each worker gets the next test, or the next group of tests, in the order of tests/conftest.py.
AT_ONCE = ("--numprocesses=4", "--dist=loadgroup", "--no-loadscope-reorder")


def main(arguments: Sequence[str]) -> int:
    """Run pytest under coverage, report, and return the first status that is not 0, pytest's before all."""
    _coverage("erase")  # data of an earlier run would be combined, too
    status = _coverage("run", "-m", "pytest", *(arguments or AT_ONCE))
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


def _say(text: str) -> None:
    print(f"tests: {text}", flush=True)  # noqa: T201  # a command line prints


def _coverage(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
