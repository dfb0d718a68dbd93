"""The programs that a lab consists of: found, configured, started, waited for, and ended whatever happens."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from triojam.errors import LabError

Address = tuple[str, int]

LOOPBACK = "127.0.0.1"
START_SECONDS = 60.0  # Grafana fills its database first
STOP_SECONDS = 4.0
KILLED_SECONDS = 2.0
POLL_SECONDS = 0.05
ANSWER_SECONDS = 1.0
LONGEST_COMPLAINT = 400

# A lab is looked at for minutes, where a production Prometheus scrapes four times in one.
SCRAPE_INTERVAL = "1s"


@dataclass(frozen=True)
class Needed:
    """A program: the names it goes by, and the Debian package that has it."""

    names: tuple[str, ...]
    package: str

    def find(self) -> str | None:
        """Return the path of the first that is on PATH."""
        return next(filter(None, map(shutil.which, self.names)), None)


PROMETHEUS = Needed(("prometheus",), "prometheus")
ALERTMANAGER = Needed(("prometheus-alertmanager", "alertmanager"), "prometheus-alertmanager")
GRAFANA_NAMES = ("grafana", "grafana-server")


def find_all(*needed: Needed) -> list[str]:
    """Return the paths of programs. Raises LabError that names each missing one with its package."""
    found = {each: each.find() for each in needed}
    if missing := [each for each, path in found.items() if path is None]:
        names = " and ".join(each.names[0] for each in missing)
        packages = " ".join(each.package for each in missing)
        raise LabError(f"lab: {names} not found on PATH; on Debian: apt install {packages}")
    return [path for path in found.values() if path is not None]


def reserve_port() -> int:
    """Return a port of loopback that is free, and that the kernel gives to nobody for a minute.

    The side of a connection that closes first keeps its port in TIME_WAIT. The kernel then hands it to
    nobody who wants just any port, but a listener that asks for it by number gets it.
    """
    with socket.create_server((LOOPBACK, 0), backlog=1) as listener:
        port: int = listener.getsockname()[1]
        with socket.create_connection((LOOPBACK, port)) as client:
            listener.accept()[0].close()
            client.recv(1)
    return port


async def answers(address: Address, path: str) -> bool:
    """Whether an HTTP server answers 200."""
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(ANSWER_SECONDS):
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: {address[0]}\r\n\r\n".encode())
            return (await stream.receive_some(64)).split()[1:2] == [b"200"]
    return False


@dataclass
class Program:
    """A child process that listens somewhere.

    healthy: the path that answers 200 once it is ready. log: the file that takes its output.
    variables: of its environment, beside those of this process.
    """

    name: str
    command: Sequence[str]
    log: Path
    address: Address = (LOOPBACK, 0)
    healthy: str = "/-/ready"
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it is looked at."""
        return f"http://{self.address[0]}:{self.address[1]}/"

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run it until cancelled. Reports once it is ready; raises LabError if it ends by itself."""
        process = await self._open()
        try:
            with trio.move_on_after(START_SECONDS) as starting:
                await self._ready(process)
            if starting.cancelled_caught:
                raise LabError(f"lab: {self.name} is not ready after {START_SECONDS:g} s{self._complaint()}")
            if process.poll() is None:
                task_status.started()
            status = await process.wait()
            raise LabError(f"lab: {self.name} has ended by itself, status {status}{self._complaint()}")
        finally:
            await _end(process)

    async def _open(self) -> trio.Process:
        return await self._launch(stdin=subprocess.DEVNULL, stdout=None)

    async def _launch(self, *, stdin: int, stdout: int | None) -> trio.Process:
        with self.log.open("wb") as log:
            # Out of the terminal's group, or Ctrl-C would end the programs behind the lab's back.
            return await trio.lowlevel.open_process(
                self.command,
                stdin=stdin,
                stdout=log.fileno() if stdout is None else stdout,
                stderr=log.fileno(),
                env=os.environ | self.variables,
                cwd=self.log.parent,
                process_group=0,
            )

    async def _ready(self, process: trio.Process) -> None:
        """Wait until it is ready, or has ended."""
        while process.poll() is None and not await answers(self.address, self.healthy):  # noqa: ASYNC110  # another process sets no Event
            await trio.sleep(POLL_SECONDS)

    def _complaint(self) -> str:
        """Return the last that it wrote."""
        lines = self.log.read_text("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[-LONGEST_COMPLAINT:]}" if last else ""


class ServerProgram(Program):
    """The triojam of the lab. web: its metrics listener."""

    web: Address = (LOOPBACK, 0)
    _process: trio.Process | None = None

    async def set_clock(self, ahead: float) -> None:
        """Let its clock be so many seconds ahead of this machine's."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(trio.BrokenResourceError):  # it has ended, which is somebody else's to say
                await self._process.stdin.send_all(f"{ahead!r}\n".encode())

    def send_signal(self, signum: int) -> None:
        """Send it a signal, if it still runs."""
        if self._process is not None:
            self._process.send_signal(signum)

    async def _open(self) -> trio.Process:
        self._process = await self._launch(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process

    async def _ready(self, process: trio.Process) -> None:
        said = b""
        if process.stdout is not None:
            while not said.endswith(b"\n") and (data := await process.stdout.receive_some()):
                said += data
        if said:
            addresses = json.loads(said)
            self.address, self.web = tuple(addresses["time"]), tuple(addresses["metrics"])
        else:
            await process.wait()


async def _end(process: trio.Process) -> None:
    """Ask a process to end, then make it; its whole group, as a program may be a script around another."""
    asked = trio.CancelScope(deadline=trio.current_time() + STOP_SECONDS, shield=True)
    killed = trio.CancelScope(deadline=asked.deadline + KILLED_SECONDS, shield=True)
    try:
        with asked:
            if process.stdin is not None:
                await process.stdin.aclose()
            else:
                _signal_group(process, signal.SIGTERM)
            await process.wait()
    finally:
        _signal_group(process, signal.SIGKILL)
        with killed:
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


def _signal_group(process: trio.Process, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def make_server(folder: Path, settings: Mapping[str, Any]) -> ServerProgram:
    """Describe the server."""
    return ServerProgram(
        "the server",
        [sys.executable, "-m", "triojam.lab.server", json.dumps(dict(settings))],
        folder / "server.log",
    )


def make_alertmanager(path: str, folder: Path, receiver: str) -> Program:
    """Write Alertmanager's configuration, and describe it. receiver: the URL that is told each alert."""
    port = reserve_port()
    configuration = {
        "route": {
            "receiver": "lab",
            "group_by": ["..."],  # each alert by itself, and at once
            "group_wait": "0s",
            "group_interval": "1s",
            "repeat_interval": "24h",
        },
        "receivers": [{"name": "lab", "webhook_configs": [{"url": receiver, "send_resolved": True}]}],
    }
    return Program(
        "Alertmanager",
        [
            path,
            f"--config.file={_write(folder / 'alertmanager.yml', configuration)}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address={LOOPBACK}:{port}",
            f"--web.external-url=http://{LOOPBACK}:{port}/",
            "--cluster.listen-address=",
        ],
        folder / "alertmanager.log",
        (LOOPBACK, port),
    )


def make_prometheus(
    path: str, folder: Path, *, target: Address, alertmanager: Address, rules: Sequence[Path]
) -> Program:
    """Write Prometheus's configuration, and describe it. target: what it scrapes. rules: files."""
    port = reserve_port()
    configuration = {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
        "rule_files": [str(rule) for rule in rules],
        "alerting": {"alertmanagers": [_static(alertmanager)]},
        "scrape_configs": [{"job_name": "triojam"} | _static(target)],
    }
    return Program(
        "Prometheus",
        [
            path,
            f"--config.file={_write(folder / 'prometheus.yml', configuration)}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={LOOPBACK}:{port}",
            f"--web.external-url=http://{LOOPBACK}:{port}/",
            # In its first seconds it does not know its Alertmanager yet, and an alert goes nowhere.
            "--rules.alert.resend-delay=2s",
        ],
        folder / "prometheus.log",
        (LOOPBACK, port),
    )


def make_grafana(path: str, folder: Path, *, dashboards: Path, prometheus: str) -> Program:
    """Describe a Grafana that anybody may look at. prometheus: the URL of its datasource."""
    port = reserve_port()
    command = [path, "server"] if Path(path).name == "grafana" else [path]
    for home in map(Path, ("/usr/share/grafana", "/usr/local/share/grafana")):
        if home.is_dir():
            command.append(f"--homepath={home}")
            break
    grafana = dashboards / "grafana"
    return Program(
        "Grafana",
        command,
        folder / "grafana.log",
        (LOOPBACK, port),
        "/api/health",
        {
            "PROMETHEUS_URL": prometheus,
            "PROMETHEUS_SCRAPE_INTERVAL": SCRAPE_INTERVAL,
            "GRAFANA_DASHBOARDS": str(grafana / "dashboards"),
            "GF_PATHS_PROVISIONING": str(grafana / "provisioning"),
            "GF_PATHS_DATA": str(folder / "grafana"),
            "GF_PATHS_LOGS": str(folder / "grafana" / "log"),
            "GF_PATHS_PLUGINS": str(folder / "grafana" / "plugins"),
            "GF_SERVER_HTTP_ADDR": LOOPBACK,
            "GF_SERVER_HTTP_PORT": str(port),
            "GF_AUTH_ANONYMOUS_ENABLED": "true",
            "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
            # It is to talk to nobody outside.
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
            "GF_NEWS_NEWS_FEED_ENABLED": "false",
        },
    )


def _static(address: Address) -> dict[str, Any]:
    return {"static_configs": [{"targets": [f"{address[0]}:{address[1]}"]}]}


def _write(file: Path, configuration: Mapping[str, Any]) -> Path:
    """Write YAML; JSON is some, and quotes whatever needs it."""
    file.write_text(json.dumps(configuration, indent=2), "utf-8")
    return file
