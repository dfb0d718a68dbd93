"""`verify --command`: a server is started, judged, and ended with all its children, whatever it does."""

import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import trio

from tests.helpers.program import COMMAND as PROGRAM
from tests.helpers.program import launched
from tests.helpers.servers import PATIENCE, receive_exactly, until
from tests.helpers.sockets import reset_on_close
from tests.helpers.waiting import eventually
from tests.verify.judging import BASIC, COMMAND, FLAWED, judge_files, named, path, run_verify
from triojam.process import keeper
from triojam.verify import run
from triojam.verify.judge import Verdict, judge
from triojam.verify.run import free_port
from triojam.verify.subject import Subject

FIRST_RULES = [rule for rule in BASIC if rule.name in ("port", "answer")]

IGNORES_SIGTERM = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
SLEEP = "import time; time.sleep(600)"
"""
# Each is run with a port and a word that only its processes have.
UNRULY = {
    "never listens": IGNORES_SIGTERM + "time.sleep(600)",
    "forks": f"""{IGNORES_SIGTERM}
for session in (False, True):
    subprocess.Popen([sys.executable, "-c", SLEEP, *sys.argv[1:]], start_new_session=session)
exec(open({str(FLAWED / "good.py")!r}).read())
""",
    "is a daemon": f"""{IGNORES_SIGTERM}
import os
if os.fork():
    sys.exit(0)
os.setsid()
if os.fork():
    sys.exit(0)
exec(open({str(FLAWED / "good.py")!r}).read())
""",
    "forks again when it is asked to end": """
import signal, subprocess, sys, time
def more(*_):
    sleep = "import time; time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", sleep, *sys.argv[1:]], start_new_session=True)
signal.signal(signal.SIGTERM, more)
while True:
    time.sleep(600)
""",
}


def processes(word: str) -> list[int]:
    """Return the processes with this word in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:  # it has ended
            pass
    return found


async def until_processes(condition: Callable[[list[int]], object], word: str) -> None:
    """Wait until the processes with this word are as they should be."""

    async def check() -> bool:
        return bool(condition(processes(word)))

    await eventually(check)


@pytest.fixture
def word() -> str:
    """Return a word that only the processes of one test have."""
    return uuid.uuid4().hex


@pytest.mark.parametrize("behaviour", UNRULY)
async def test_no_process_is_left(
    behaviour: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ignores SIGTERM, forks, or leaves its session is ended with all its processes."""
    file = tmp_path / "server.py"
    file.write_text(UNRULY[behaviour], "utf-8")
    monkeypatch.setattr(run, "START_SECONDS", 2.0)
    listens = "good.py" in UNRULY[behaviour]
    (report,) = await judge_files([f"{file}"], command=f"{COMMAND} {{}} {{port}} {word} #", rules=FIRST_RULES)
    assert processes(word) == []
    assert named(report.findings, Verdict.HOLDS) == ({"port", "answer"} if listens else set())


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_no_process_is_left_when_the_judge_ends_early(
    signum: signal.Signals, word: str, tmp_path: Path
) -> None:
    """The server ends with its judge, even if the judge is killed."""
    file = tmp_path / "server.py"
    file.write_text(UNRULY["forks"], "utf-8")
    command = f"{COMMAND} {file} {{port}} {word}"
    async with launched([*PROGRAM, "verify", "--command", command], {}, stdout=subprocess.DEVNULL) as process:
        await until_processes(lambda found: len(found) >= 3, word)
        process.send_signal(signum)
        with trio.fail_after(PATIENCE):
            status = await process.wait()
        await until_processes(lambda found: not found, word)
        assert status == (-signum if signum == signal.SIGKILL else 128 + signum)


async def test_a_server_that_ends_before_it_listens_shows_its_stderr(tmp_path: Path) -> None:
    """The rule of the open port fails at once, with the last lines that the server wrote."""
    file = tmp_path / "server.py"
    file.write_text("raise SystemExit('the \\x1b[31mport is wrong')", "utf-8")
    with trio.fail_after(PATIENCE):
        (report,) = await judge_files([str(file)])
    first = report.findings[0]
    assert first.verdict is Verdict.FAILS
    assert first.reason.startswith("the command ended with status 1, and did not listen on port ")
    assert first.reason.endswith(" (no connection: connection refused)")
    assert first.stderr == "the  [31mport is wrong"


async def test_a_server_that_dies_is_started_again_for_the_next_rule() -> None:
    """A rule that kills the server fails with its stderr; the next rules are tried on a new start."""
    (report,) = await judge_files([path("dies_at_high_bytes")])
    (failed,) = [each for each in report.findings if each.verdict is Verdict.FAILS]
    assert failed.rule.name == "high-bytes"
    assert "afterwards the server was gone: no connection: connection refused" in failed.reason
    assert "UnicodeDecodeError" in failed.stderr
    assert report.findings[-1].verdict is Verdict.HOLDS


async def test_without_command_the_rules_after_a_death_name_the_rule_that_killed(word: str) -> None:
    """If the server cannot be started again, the other rules are not tried, and say why."""
    server = run.servers_of(f"{COMMAND} {path('dies_at_high_bytes')} {{port}}", (), None)[0]
    async with run.running(server) as program:
        assert await program.restart()
        findings = await judge(Subject(server.target, patience=PATIENCE), BASIC)
    names = [each.rule.name for each in findings]
    later = findings[names.index("high-bytes") + 1 :]
    assert named(findings, Verdict.FAILS) == {"high-bytes"}
    assert {each.reason for each in later} == {"the server did not survive the rule high-bytes"}
    assert {each.verdict for each in later} == {Verdict.NOT_TRIED}


async def test_a_server_that_hangs_is_told_from_a_server_that_is_slow(tmp_path: Path) -> None:
    """A server that answers no client after a rule has not survived that rule."""
    file = tmp_path / "server.py"
    source = (FLAWED / "dies_at_high_bytes.py").read_text("utf-8")
    hang = "if b'HELLO' in line:\n            while True:\n                pass\n        "
    file.write_text(source.replace("if not (line", f"{hang}if not (line"), "utf-8")
    rules = [rule for rule in BASIC if rule.name in ("port", "answer", "concurrent", "nothing-else")]
    (report,) = await judge_files([str(file)], rules=rules, patience=3)
    assert report.findings[-1].reason == "afterwards the server was gone: no answer within 3 s"


def without_reuse() -> str:
    """Return the source of a good server that does not set SO_REUSEADDR."""
    source = (FLAWED / "good.py").read_text("utf-8")
    for old, new in (
        ("import create_server", "import socket"),
        ("with create_server((", "with socket() as server:\n    server.bind(("),
        (", backlog=128) as server:\n", ")\n    server.listen(128)\n"),
    ):
        assert old in source
        source = source.replace(old, new)
    return source


async def test_a_server_waits_for_a_port_that_old_connections_hold(tmp_path: Path) -> None:
    """A server that cannot listen because a connection has its port is started again later."""
    file = tmp_path / "server.py"
    file.write_text(without_reuse(), "utf-8")
    (server,) = run.servers_of(f"{COMMAND} {{}} {{port}}", [str(file)], None)
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as holder:
        holder.bind(("127.0.0.1", server.target.port))
        holder.connect(other.getsockname())
        started: list[bool] = []
        async with run.running(server) as program, trio.open_nursery() as nursery:

            async def start() -> None:
                started.append(await program.restart())

            nursery.start_soon(start)
            await until(lambda: b"in use" in program._stderr)
            reset_on_close(holder)
            holder.close()
            with trio.fail_after(PATIENCE):
                await until(lambda: bool(started))
    assert started == [True]


async def test_submissions_on_one_port_are_judged_one_after_the_other(tmp_path: Path) -> None:
    """Three submissions that listen on the same port are graded with one command.

    The last does not set SO_REUSEADDR: no connection of the others may hold the port.
    """
    port = free_port()
    for name, source in (
        ("ada lovelace", (FLAWED / "no_cr.py").read_text("utf-8")),
        ("barbara", "raise SystemExit('not finished')"),
        ("grace", without_reuse()),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "server.py").write_text(source, "utf-8")
    files = [str(tmp_path / name / "server.py") for name in ("ada lovelace", "barbara", "grace")]
    junit = tmp_path / "grades.xml"
    ended = await run_verify(
        "--command", f"{COMMAND} {{}} {port}", "--port", str(port), "--junit", str(junit), *files
    )
    assert ended.returncode == 1
    rows = [line.split("  ") for line in ended.stdout.splitlines()]
    assert {row[0].strip(): row[-1].strip() for row in rows[1:4]} == {
        files[0]: "exact-answer",
        files[1]: "port",
        files[2]: "12/12",
    }
    suites = ET.parse(junit).getroot()
    assert [(each.get("name"), each.get("failures")) for each in suites] == list(
        zip(files, ["1", "1", "0"], strict=True)
    )
    assert "not finished" in (suites[1][0][0].text or "")


async def test_a_port_that_another_server_has_is_an_error() -> None:
    """Another server on the port would be judged in place of the command's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = await run_verify("--command", f"{sys.executable} -c pass", "--port", str(port))
    assert ended.returncode == 2
    expected = f"triojam: another program listens on port {port}: end it, or use --port\n"
    assert ended.stderr == expected


async def test_the_keeper_tells_the_status_of_its_command() -> None:
    """The keeper prints the exit status of a command that ends by itself, and ends with its own input."""
    command = [sys.executable, "-m", keeper.__name__, sys.executable, "-c", "raise SystemExit(3)"]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        assert await receive_exactly(process.stdout, 2) == b"3\n"
        await process.stdin.aclose()
        with trio.fail_after(PATIENCE):
            assert await process.wait() == 0


async def test_modules_in_the_working_directory_do_not_replace_those_of_the_keeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with a signal.py, as a student may have, does not fail a good server."""
    (tmp_path / "signal.py").write_text("raise SystemExit('not this one')", "utf-8")
    monkeypatch.chdir(tmp_path)
    command = f"{COMMAND} {{}} {{port}}"
    (report,) = await judge_files([str(FLAWED / "good.py")], command=command, rules=FIRST_RULES)
    assert named(report.findings, Verdict.HOLDS) == {"port", "answer"}
