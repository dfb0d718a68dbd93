"""Judges servers of tests/verify/flawed, which are started as a teacher would start them."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from tests.helpers.program import COMMAND as PROGRAM
from tests.helpers.program import environment
from triojam.verify.judge import Finding, Group, Verdict
from triojam.verify.rules import RULES
from triojam.verify.run import Options, Report, judge_all, servers_of

FLAWED = Path(__file__).with_name("flawed")
# Four tests run at once on two processors.
PATIENCE = 10.0
# Without the variable that makes coverage measure a program.
COMMAND = f"env -u COVERAGE_PROCESS_CONFIG {sys.executable}"
BASIC = [rule for rule in RULES if rule.group is not Group.STRICT]


def path(name: str) -> str:
    """Return the path of a server's file."""
    return str(FLAWED / f"{name}.py")


async def judge_files(files: Sequence[str], *, command: str = COMMAND, **changes: Any) -> list[Report]:
    """Judge servers, each on a free port."""
    options: dict[str, Any] = {"rules": BASIC, "patience": PATIENCE}
    reports = [Report(each) for each in servers_of(f"{command} {{}} {{port}}", files, None)]
    with trio.fail_after(300):
        await judge_all(reports, Options(**options | changes))
    return reports


def named(findings: Sequence[Finding], verdict: Verdict) -> set[str]:
    """Return the names of the rules with this verdict."""
    return {each.rule.name for each in findings if each.verdict is verdict}


async def run_verify(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `triojam verify` to its end."""
    with trio.fail_after(300):
        ended = await trio.run_process(
            [*PROGRAM, "verify", "--patience", str(PATIENCE), *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(**variables),
        )
    return subprocess.CompletedProcess(words, ended.returncode, ended.stdout.decode(), ended.stderr.decode())
