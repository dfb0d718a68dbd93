"""triojam holds every rule, on each of its paths."""

import json
import ssl
import time
from datetime import UTC
from typing import Any

import pytest
import trio

from tests.conftest import Start
from tests.helpers.program import serving
from tests.helpers.servers import Running, start_tcp, trusting
from tests.verify.judging import PATIENCE, named, run_verify
from triojam.client.session import Target
from triojam.verify import strict
from triojam.verify.judge import Finding, Verdict, judge
from triojam.verify.rules import RULES
from triojam.verify.subject import Subject

DEADLINES = [rule for rule in RULES if rule.slow]
WITH_DEADLINES = [rule for rule in RULES if rule.slow or rule.name in ("port", "answer", "concurrent")]


async def judge_running(running: Running, *, patience: float = PATIENCE, **options: Any) -> list[Finding]:
    """Judge a server in this process, over TLS if its clients must use it."""
    assert running.server is not None
    host, port = (running.server.tls_addresses if running.tls else running.server.addresses)[0]
    tls: ssl.SSLContext | None = trusting() if running.tls else None
    subject = Subject(Target(str(host), int(port)), patience=patience, tls=tls, zone=UTC)
    return await judge(subject, **{"rules": RULES} | options)


async def test_triojam_holds_every_rule(start_socket: Start) -> None:
    """Over the fast lane, the portable path and TLS, every rule holds; only deadlines are not tried."""
    findings = await judge_running(await start_socket(now=time.time))
    assert [(each.rule.name, each.reason) for each in findings if each.verdict is Verdict.FAILS] == []
    assert named(findings, Verdict.NOT_TRIED) == {rule.name for rule in DEADLINES}


@pytest.fixture
def _short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LINE_SECONDS", 1), ("IDLE_SECONDS", 2), ("SEND_SECONDS", 1)):
        monkeypatch.setattr(strict, name, seconds)


@pytest.mark.usefixtures("_short_deadlines")
async def test_triojam_holds_its_deadlines(start_socket: Start) -> None:
    """With --slow, the deadlines are tried, and hold."""
    running = await start_socket(now=time.time, line_timeout=1, idle_timeout=2, send_timeout=1)
    findings = await judge_running(running, rules=WITH_DEADLINES, slow=True)
    assert {each.rule.name: each.reason for each in findings if each.verdict is not Verdict.HOLDS} == {}


@pytest.mark.usefixtures("_short_deadlines")
async def test_a_server_with_other_deadlines_fails_them(nursery: trio.Nursery) -> None:
    """Each rule of a deadline fails if the server has none; two of them fail if it comes much too early."""
    expected = {rule.name for rule in DEADLINES}
    never = await start_tcp(nursery, line_timeout=0, idle_timeout=0, send_timeout=0)
    findings = await judge_running(never, rules=WITH_DEADLINES, slow=True, patience=1)
    assert named(findings, Verdict.FAILS) == expected
    early = await start_tcp(nursery, line_timeout=0.1, idle_timeout=0.1, send_timeout=0.1)
    findings = await judge_running(early, rules=WITH_DEADLINES, slow=True)
    assert named(findings, Verdict.FAILS) == expected - {"strict-send-deadline"}


async def test_the_command_judges_a_whole_process() -> None:
    """`verify --strict` of a triojam process ends with status 0."""
    async with serving("--timezone", "UTC") as program:
        server = f"{program.address[0]}:{program.address[1]}"
        ended = await run_verify(server, "--require", "strict", "--timezone", "UTC", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    (judged,) = json.loads(ended.stdout)
    assert judged["server"] == server
    assert judged["score"] == {
        "exercise": {"holds": 8, "of": 8},
        "later": {"holds": 2, "of": 2},
        "robust": {"holds": 12, "of": 12},
        "strict": {"holds": 6, "of": 6},
    }
