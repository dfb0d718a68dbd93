"""`python -m tests.fuzz TARGET --seconds N [--corpus DIR]`: fuzz one target, or `all` at the same time.

The last line has the figures. The exit status is 1 if there is a finding.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
GUIDED = ("protocol", "proxy", "settings", "files", "web", "clients")
# In bytes. Lines have at most 512 bytes and settings files are short; longer inputs only take longer.
LONGEST_INPUT = 2048
# The time limit of one input, in seconds.
LONGEST_TIME = 10
# Examples of one Hypothesis run. Between runs the time is checked.
EXAMPLES = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=["connection", *GUIDED, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="the time for each target")
    parser.add_argument("--corpus", type=Path, help="a folder for inputs that reach new lines")
    asked = parser.parse_args(arguments)
    if asked.target == "all":
        return _fuzz_all(asked.seconds)
    if asked.target == "connection":
        return _fuzz_connections(asked.seconds)
    with tempfile.TemporaryDirectory() as folder:
        return _fuzz_guided(asked.target, asked.seconds, asked.corpus or Path(folder))


def _fuzz_all(seconds: int) -> int:
    """Run each target in its own process, and print its output after it has ended."""
    words = [sys.executable, "-m", "tests.fuzz"]
    running = [
        subprocess.Popen(
            [*words, target, "--seconds", str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for target in ("connection", *GUIDED)
    ]
    for process in running:
        print(process.communicate()[0], end="", flush=True)
    return int(any(process.returncode for process in running))


def _fuzz_connections(seconds: int) -> int:
    """Run Hypothesis over each transport in turn until the time is over."""
    from hypothesis import HealthCheck, settings  # noqa: PLC0415  # only needed here
    from hypothesis.stateful import run_state_machine_as_test  # noqa: PLC0415  # as above

    from tests.fuzz.connection import TRANSPORTS, over  # noqa: PLC0415  # as above

    machines = {transport: over(transport) for transport in TRANSPORTS}
    once = settings(
        max_examples=EXAMPLES,
        stateful_step_count=40,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    began = time.monotonic()
    findings = 0
    while time.monotonic() - began < seconds and not findings:
        for machine in machines.values():
            try:
                run_state_machine_as_test(machine, settings=once)
            except BaseException as exc:  # noqa: BLE001  # every error is a finding
                sys.excepthook(type(exc), exc, exc.__traceback__)
                findings += 1
                if isinstance(exc, KeyboardInterrupt):
                    break
    passed = time.monotonic() - began
    examples = sum(machine.examples for machine in machines.values())
    steps = sum(machine.steps for machine in machines.values())
    each = ", ".join(f"{name} {machine.examples}" for name, machine in machines.items())
    print(
        f"fuzz connection: {examples} examples ({each}), {steps} steps in {passed:.0f} s,"
        f" {steps / passed:.0f} steps/s, {findings} findings",
        flush=True,
    )
    return int(findings > 0)


def _fuzz_guided(target: str, seconds: int, corpus: Path) -> int:
    """Run a target under atheris, starting from the committed corpus."""
    corpus.mkdir(parents=True, exist_ok=True)
    flags = {
        "max_total_time": seconds,
        "max_len": LONGEST_INPUT,
        "timeout": LONGEST_TIME,
        "print_final_stats": 1,
        "artifact_prefix": f"{tempfile.gettempdir()}/fuzz-{target}-",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", target]
        + [f"-{name}={value}" for name, value in flags.items()]
        + [str(corpus), str(CORPUS / target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if ended.returncode:
        print(ended.stdout[-8000:], flush=True)
    executions = _last(r"number_of_executed_units: +(\d+)", ended.stdout)
    per_second = _last(r"average_exec_per_sec: +(\d+)", ended.stdout)
    edges = _last(r"cov: (\d+)", ended.stdout)
    inputs = _last(r"corp: (\d+)", ended.stdout)
    print(
        f"fuzz {target}: {executions} executions, {per_second}/s, {edges} edges, corpus of {inputs} inputs,"
        f" {int(ended.returncode != 0)} findings",
        flush=True,
    )
    return int(ended.returncode != 0)


def _last(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    return found[-1] if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
