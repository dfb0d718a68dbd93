"""The lab as a whole program: what it starts and prints, how it ends, and that nothing is left."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.helpers.program import COMMAND, launched
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Address, fetch, scrape
from tests.helpers.servers import PATIENCE
from tests.helpers.waiting import eventually
from triojam.lab.run import find_dashboards

# The lab starts three programs, which are slow on a busy machine.
LAB_PATIENCE = 3 * PATIENCE

# The alerts that each of these faults must fire; at this speed, half an hour in the rules is half a minute.
SPEED = 60
FIRED = {
    "pause": {"TriojamDown", "TriojamEventLoopLag"},
    "clock": {"TriojamClockWrong", "TriojamClockStepped"},
    "flood": {"TriojamRefusing", "TriojamNearlyFull", "TriojamFailingFast"},
}

# A program that is ready at once, ignores SIGTERM, as does its child, and serves its environment.
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
    """A running lab. folder: where it makes its temporary directory. printed: the lines read so far."""

    def __init__(self, process: trio.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.printed: list[str] = []
        self._unread = b""

    async def says(self, pattern: str) -> re.Match[str]:
        """Return the next line that matches."""
        with trio.fail_after(LAB_PATIENCE):
            while (line := await self._line()) is not None:
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"no {pattern!r} in {self.printed} {await self.complaint()}")

    async def started(self) -> None:
        """Wait until all programs run."""
        await self.says("^Ctrl-C")

    def address(self, name: str) -> Address:
        """Return an address from the printed table."""
        (found,) = re.findall(rf"^{name}  .*?(127\.0\.0\.1):(\d+)", "\n".join(self.printed), re.MULTILINE)
        return found[0], int(found[1])

    async def ends(self, signum: int | None = None) -> int:
        """Return the exit status, after sending a signal if one is given; no process or file may be left."""
        left = list(descendants(self.process.pid))
        if signum is not None:
            assert len(left) >= 3
            self.process.send_signal(signum)
        with trio.fail_after(LAB_PATIENCE):
            while await self._line() is not None:
                pass
            status = await self.process.wait()
            while any(map(lives, left)):  # noqa: ASYNC110  # init reaps the orphans
                await trio.sleep(0.01)
        assert is_empty(self.folder)
        return status

    async def complaint(self) -> str:
        """Return what the lab has written to stderr."""
        assert self.process.stderr is not None
        return b"".join([data async for data in self.process.stderr]).decode()

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


def descendants(pid: int) -> Iterator[int]:
    """Yield the children of a process, and their children."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            # proc(5): the name in parentheses may contain any character; the state and the parent follow.
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    found = list(children.get(pid, ()))
    for each in found:
        found += children.get(each, ())
        yield each


def lives(pid: int) -> bool:
    """Whether the process exists."""
    return Path(f"/proc/{pid}").exists()


def command_of(pid: int) -> str:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder."""
    return not any(folder.iterdir())


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Return the folder in which a lab makes its temporary directory."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def programs() -> None:
    """Skip the test if a program that the lab needs is missing."""
    require_program("prometheus", "prometheus")
    require_program("prometheus-alertmanager", "prometheus-alertmanager")


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """Return an empty folder for fake programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@asynccontextmanager
async def running(temporary: Path, *words: str, **variables: str) -> AsyncIterator[Lab]:
    """Run a lab; if the test fails, it is killed with all its programs."""
    environ = {"TMPDIR": str(temporary), **variables}
    async with launched([*COMMAND, "lab", *words], environ, stdout=subprocess.PIPE) as process:
        try:
            yield Lab(process, temporary)
        except BaseException:
            for pid in [*descendants(process.pid)] if process.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
            raise


def fake(folder: Path, script: str, *names: str) -> None:
    """Put a program into a folder, under each of the names."""
    for name in names:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)


async def test_ctrl_c_ends_the_lab(programs: None, temporary: Path) -> None:
    """Prometheus scrapes the server and has the rules, the load runs, and after Ctrl-C nothing is left."""
    async with running(temporary) as lab:
        await lab.started()
        prometheus, metrics = lab.address("Prometheus"), lab.address("metrics")

        async def ask_prometheus(path: str, key: str) -> list[dict[str, Any]]:
            reply = await fetch(prometheus, path)
            assert reply.status == 200
            found: list[dict[str, Any]] = json.loads(reply.body)["data"][key]
            return found

        async def scraped() -> bool:
            targets = await ask_prometheus("/api/v1/targets", "activeTargets")
            assert {each["scrapeUrl"] for each in targets} <= {f"http://{metrics[0]}:{metrics[1]}/metrics"}
            return [each["health"] for each in targets] == ["up"]

        async def bad_lines_were_sent() -> bool:
            return (await scrape(metrics)).total("triojam_rejected_total") >= 1

        await eventually(scraped)
        loaded = {Path(group["file"]).name for group in await ask_prometheus("/api/v1/rules", "groups")}
        shipped = (find_dashboards() / "prometheus" / "rules").glob("*.yml")
        assert loaded == {file.name for file in shipped}
        for name, path in (("Alertmanager", "/-/healthy"), ("live page", "/")):
            assert (await fetch(lab.address(name), path)).status == 200
        await eventually(bad_lines_were_sent)
        assert await lab.ends(signal.SIGINT) == 130


async def test_the_lab_ends_after_its_duration(programs: None, temporary: Path) -> None:
    """With --duration the lab ends with status 0, after it has announced each fault and its end."""
    faults = ["--fault", "resets", "--fault", "garbage", "--fault-after", "0.2", "--fault-for", "0.5"]
    async with running(temporary, "--duration", "3", *faults) as lab:
        for name in ("resets", "garbage"):
            await lab.says(f"fault    {name} for 0.5 s: 10 clients")
            await lab.says(f"fault    {name} is over")
        assert await lab.ends() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_the_lab_during_its_start(programs: None, temporary: Path, signum: int) -> None:
    """A signal before the table is printed leaves nothing."""
    async with running(temporary) as lab:
        with trio.fail_after(PATIENCE):
            while is_empty(temporary):  # noqa: ASYNC110  # another process sets no Event
                await trio.sleep(0.01)
        lab.process.send_signal(signum)
        assert await lab.ends() == 128 + signum


@pytest.mark.xdist_group("alerts")
async def test_faults_fire_alerts(programs: None, temporary: Path) -> None:
    """Each fault fires its alerts, which resolve after it; the lab prints both."""
    faults = [word for name in FIRED for word in ("--fault", name)]
    # Prometheus scrapes new targets after 5 s. A server that was never scraped is not known to the rules.
    words = [*faults, "--fault-after", "10", "--fault-for", "20", "--speed", str(SPEED)]
    async with running(temporary, *words) as lab:
        await lab.started()
        fired: dict[str, set[str]] = {name: set() for name in ["", *FIRED]}
        resolved: set[str] = set()
        fault = ""
        with trio.fail_after(20 * PATIENCE):
            while not resolved >= set().union(*FIRED.values()):
                line = await lab.says(r"^\d\d:\d\d:\d\d  (fault|FIRING|resolved) +(\S+)")
                if line[1] == "fault":
                    fault = line[2]
                elif line[1] == "FIRING":
                    fired[fault].add(line[2])
                else:
                    resolved.add(line[2])
        assert {name: alerts & fired[name] for name, alerts in FIRED.items()} == FIRED
        assert await lab.ends(signal.SIGTERM) == 143


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (
            [],
            (
                "prometheus and prometheus-alertmanager not found on PATH; "
                "on Debian: apt install prometheus prometheus-alertmanager"
            ),
        ),
        (
            ["prometheus"],
            "prometheus-alertmanager not found on PATH; on Debian: apt install prometheus-alertmanager",
        ),
        # `alertmanager` is its name in other distributions. The last line of its output is shown.
        (["prometheus", "alertmanager"], "Alertmanager has ended by itself, status 3: this cannot work"),
    ],
)
async def test_a_missing_or_broken_program_is_named(
    fakes: Path, temporary: Path, names: list[str], complaint: str
) -> None:
    """One line says which program is missing, and its Debian package, or which one has failed."""
    fake(fakes, BROKEN, *names)
    async with running(temporary, PATH=str(fakes)) as lab:
        assert await lab.ends() == 1
        assert lab.printed == []
        assert await lab.complaint() == f"triojam: lab: {complaint}\n"


async def test_the_end_of_a_program_ends_the_lab(fakes: Path, temporary: Path) -> None:
    """If one program dies, the lab ends, and kills all others, even if they ignore SIGTERM."""
    fake(fakes, STUBBORN, "prometheus", "prometheus-alertmanager", "grafana-server")
    async with running(temporary, PATH=f"{fakes}:/usr/bin:/bin") as lab:
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
        assert await lab.complaint() == "triojam: lab: the server has ended by itself, status -9\n"


async def test_a_closed_pipe_ends_the_lab(programs: None, temporary: Path) -> None:
    """When the reader of its output closes the pipe, the lab ends as after SIGPIPE."""
    words = ["--fault", "garbage", "--fault-after", "0.1", "--fault-for", "0.1"]
    async with running(temporary, *words) as lab:
        await lab.says("^time ")
        assert lab.process.stdout is not None
        await lab.process.stdout.aclose()
        with trio.fail_after(LAB_PATIENCE):
            assert await lab.process.wait() == 141
    assert is_empty(temporary)
