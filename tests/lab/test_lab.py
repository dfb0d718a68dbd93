"""The lab as a whole program: what it starts, shows, survives, and leaves behind, which is nothing."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.helpers.program import COMMAND, environment, launched
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Address, fetch, scrape
from tests.helpers.servers import PATIENCE
from triojam.lab.run import find_dashboards

# Three programs start, and on a busy machine none of them is quick.
LAB_PATIENCE = 3 * PATIENCE

# Which alerts each of these faults must fire; at this speed, half an hour of the rules' is half a minute.
SPEED = 60
FIRED = {
    "pause": {"TriojamDown", "TriojamEventLoopLag"},
    "clock": {"TriojamClockWrong", "TriojamClockStepped"},
    "flood": {"TriojamRefusing", "TriojamNearlyFull", "TriojamFailingFast"},
}

# A program that is ready at once and does not heed SIGTERM, nor does its child. It says its environment.
STUBBORN = f"""#!{sys.executable}
import http.server, json, os, re, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"])
words = " ".join(sys.argv)
port = os.environ.get("GF_SERVER_HTTP_PORT") or re.search(r"listen-address=127.0.0.1:([0-9]+)", words)[1]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""
BROKEN = f"""#!{sys.executable}
import sys
print("first\\nthis cannot work", file=sys.stderr)
sys.exit(3)
"""


class Lab:
    """A lab that runs. printed: its lines so far."""

    def __init__(self, process: trio.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.printed: list[str] = []
        self._unread = b""

    async def says(self, pattern: str) -> re.Match[str]:
        """Return the next line that has the pattern."""
        with trio.fail_after(LAB_PATIENCE):
            while (line := await self._line()) is not None:
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"no {pattern!r} in {self.printed} {await self._complaint()}")

    async def started(self) -> None:
        """Wait until all of it runs."""
        await self.says("^Ctrl-C")

    def address(self, name: str) -> Address:
        """Return an address of its table."""
        (text,) = [line for line in self.printed if line.startswith(f"{name}  ")]
        found = re.search(r"(127\.0\.0\.1):(\d+)", text)
        assert found
        return found[1], int(found[2])

    async def ends(self, signum: int | None = None) -> int:
        """Return the exit status, with nothing left behind. signum: is sent first."""
        left = list(descendants(self.process.pid))
        if signum is not None:
            assert len(left) >= 3
            self.process.send_signal(signum)
        with trio.fail_after(LAB_PATIENCE):
            while await self._line() is not None:
                pass
            status = await self.process.wait()
            while any(map(lives, left)):  # noqa: ASYNC110  # init reaps what has lost its parent
                await trio.sleep(0.01)
        assert left_in(self.folder) == []
        return status

    async def _line(self) -> str | None:
        assert self.process.stdout is not None
        while b"\n" not in self._unread:
            data = await self.process.stdout.receive_some()
            if not data:
                return None
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        self.printed.append(line.decode())
        return self.printed[-1]

    async def _complaint(self) -> str:
        assert self.process.stderr is not None
        return b"".join([data async for data in self.process.stderr]).decode()


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and those that these have."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            # proc(5): the name in parentheses may have any character, the state and the parent follow.
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    found = list(children.get(pid, ()))
    for each in found:
        found += children.get(each, ())
        yield each


def lives(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def left_in(folder: Path) -> list[Path]:
    """Return what is in a folder."""
    return list(folder.iterdir())


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The folder in which a lab makes its own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def programs() -> None:
    """A lab needs these."""
    require_program("prometheus", "prometheus")
    require_program("prometheus-alertmanager", "prometheus-alertmanager")


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A folder for programs; Python is there, too."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@asynccontextmanager
async def running(command: Sequence[str], temporary: Path, **variables: str) -> AsyncIterator[Lab]:
    """Run a lab, which is ended with all it has started even where the test fails."""
    environ = {"TMPDIR": str(temporary), **variables}
    async with launched(command, environ, stdout=subprocess.PIPE) as process:
        lab = Lab(process, temporary)
        try:
            yield lab
        except BaseException:
            for pid in [*descendants(process.pid)] if process.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
            raise


def fake(folder: Path, script: str, *names: str) -> None:
    """Put a program into a folder, under each of the names."""
    for name in names:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)


async def ask_prometheus(server: Address, path: str) -> Any:
    """Return what Prometheus answers."""
    reply = await fetch(server, path)
    assert reply.status == 200
    return json.loads(reply.body)["data"]


async def test_the_lab_runs_until_ctrl_c(programs: None, temporary: Path) -> None:
    """Prometheus scrapes the server, has the rules and Alertmanager; Ctrl-C leaves nothing."""
    async with running([*COMMAND, "lab"], temporary) as lab:
        await lab.started()
        prometheus = lab.address("Prometheus")
        with trio.fail_after(PATIENCE):
            while [each["health"] for each in await targets(prometheus)] != ["up"]:  # noqa: ASYNC110  # as it likes
                await trio.sleep(0.1)
        host, port = lab.address("metrics")
        assert [each["scrapeUrl"] for each in await targets(prometheus)] == [f"http://{host}:{port}/metrics"]
        loaded = {group["file"] for group in (await ask_prometheus(prometheus, "/api/v1/rules"))["groups"]}
        shipped = (find_dashboards() / "prometheus" / "rules").glob("*.yml")
        assert {Path(file).name for file in loaded} == {file.name for file in shipped}
        managers = (await ask_prometheus(prometheus, "/api/v1/alertmanagers"))["activeAlertmanagers"]
        assert len(managers) <= 1  # it finds its own after a moment
        assert (await fetch(lab.address("Alertmanager"), "/-/healthy")).status == 200
        assert (await fetch(lab.address("live page"), "/")).status == 200
        with trio.fail_after(PATIENCE):
            while (await scrape(lab.address("metrics"))).total("triojam_rejected_total") < 1:  # noqa: ASYNC110  # as it is dealt
                await trio.sleep(0.1)
        assert await lab.ends(signal.SIGINT) == 130


async def targets(prometheus: Address) -> list[dict[str, Any]]:
    """Return what Prometheus scrapes."""
    found: list[dict[str, Any]] = (await ask_prometheus(prometheus, "/api/v1/targets"))["activeTargets"]
    return found


async def test_the_lab_ends_with_its_duration(programs: None, temporary: Path) -> None:
    """With --duration it ends by itself, with 0; a fault is announced and over before."""
    faults = ["--fault", "resets", "--fault", "garbage"]
    words = ["--duration", "3", *faults, "--fault-after", "0.2", "--fault-for", "0.5"]
    async with running([*COMMAND, "lab", *words], temporary) as lab:
        for name in ("resets", "garbage"):
            await lab.says(f"fault    {name} for 0.5 s: 10 clients")
            await lab.says(f"fault    {name} is over")
        assert await lab.ends() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
async def test_the_lab_is_ended_while_it_starts(programs: None, temporary: Path, signum: int) -> None:
    """A signal before the table is printed leaves nothing, either."""
    async with running([*COMMAND, "lab"], temporary) as lab:
        with trio.fail_after(PATIENCE):
            while not left_in(temporary):  # noqa: ASYNC110  # another process sets no Event
                await trio.sleep(0.01)
        lab.process.send_signal(signum)
        assert await lab.ends() == 128 + signum


@pytest.mark.xdist_group("alerts")
async def test_alerts_fire_and_resolve(programs: None, temporary: Path) -> None:
    """Faults fire the alerts that are for them, which resolve after: from the server to the terminal."""
    faults = [word for name in FIRED for word in ("--fault", name)]
    words = [*faults, "--fault-after", "3", "--fault-for", "20", "--speed", str(SPEED)]
    async with running([*COMMAND, "lab", *words], temporary) as lab:
        await lab.started()
        fired: dict[str, set[str]] = {name: set() for name in ["", *FIRED]}
        resolved: set[str] = set()
        fault = ""
        with trio.fail_after(20 * PATIENCE):
            while not resolved >= set().union(*FIRED.values()):
                said = await lab.says(r"^\d\d:\d\d:\d\d  (fault|FIRING|resolved) +(\S+)")
                if said[1] == "fault":
                    fault = said[2]
                elif said[1] == "FIRING":
                    fired[fault].add(said[2])
                else:
                    resolved.add(said[2])
        assert {name: alerts & fired[name] for name, alerts in FIRED.items()} == FIRED
        assert await lab.ends(signal.SIGTERM) == 143


async def run_with(fakes: Path, temporary: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a lab to its end where there are no programs but those in a folder."""
    with trio.fail_after(LAB_PATIENCE):
        done = await trio.run_process(
            [*COMMAND, "lab"],
            env=environment(PATH=str(fakes), TMPDIR=str(temporary)),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert left_in(temporary) == []
    return done


async def test_a_missing_program_is_named(fakes: Path, temporary: Path) -> None:
    """One line names what is missing, with its Debian package."""
    done = await run_with(fakes, temporary)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        "triojam: lab: prometheus and prometheus-alertmanager not found on PATH; "
        "on Debian: apt install prometheus prometheus-alertmanager\n"
    )
    fake(fakes, BROKEN, "prometheus")
    done = await run_with(fakes, temporary)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "triojam: lab: prometheus-alertmanager not found on PATH; "
        "on Debian: apt install prometheus-alertmanager\n"
    )


async def test_a_program_that_fails_ends_the_lab(fakes: Path, temporary: Path) -> None:
    """One line says which it was and what it last wrote; `alertmanager` is a name, too."""
    fake(fakes, BROKEN, "prometheus", "alertmanager")
    done = await run_with(fakes, temporary)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"triojam: lab: Alertmanager has ended by itself, status 3: this cannot work\n"


async def test_a_program_that_dies_ends_the_lab(fakes: Path, temporary: Path) -> None:
    """A lab without one of its parts is none; what does not heed SIGTERM is killed, children and all."""
    fake(fakes, STUBBORN, "prometheus", "prometheus-alertmanager", "grafana-server")
    async with running([*COMMAND, "lab"], temporary, PATH=f"{fakes}:/usr/bin:/bin") as lab:
        await lab.started()
        environ = json.loads((await fetch(lab.address("Grafana"), "/")).body)
        prometheus = lab.address("Prometheus")
        assert environ["PROMETHEUS_URL"] == f"http://{prometheus[0]}:{prometheus[1]}/"
        grafana = find_dashboards() / "grafana"
        assert environ["GF_PATHS_PROVISIONING"] == str(grafana / "provisioning")
        assert environ["GRAFANA_DASHBOARDS"] == str(grafana / "dashboards")
        assert environ["GF_PATHS_DATA"].startswith(str(temporary))
        left = list(descendants(lab.process.pid))
        (server,) = [pid for pid in left if "triojam.lab.server" in command_of(pid)]
        assert len(left) == 7
        os.kill(server, signal.SIGKILL)
        assert await lab.ends() == 1
        assert not any(map(lives, left))
        assert lab.process.stderr is not None
        complaint = b"".join([data async for data in lab.process.stderr])
        assert complaint == b"triojam: lab: the server has ended by itself, status -9\n"


def command_of(pid: int) -> str:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


async def test_the_lab_ends_with_its_reader(programs: None, temporary: Path) -> None:
    """When nobody reads what it prints, it ends as others do in a pipe."""
    words = ["--fault", "garbage", "--fault-after", "0.1", "--fault-for", "0.1"]
    async with running([*COMMAND, "lab", *words], temporary) as lab:
        await lab.says("^time ")
        assert lab.process.stdout is not None
        await lab.process.stdout.aclose()
        with trio.fail_after(LAB_PATIENCE):
            assert await lab.process.wait() == 141
    assert left_in(temporary) == []
