"""The lab's child processes: found on PATH, started, waited for, and always ended."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from triojam.errors import LabError

Address = tuple[str, int]

LOOPBACK = "127.0.0.1"
START_SECONDS = 60.0  # the first start of Grafana takes long
STOP_SECONDS = 4.0
KILLED_SECONDS = 2.0
POLL_SECONDS = 0.05
ANSWER_SECONDS = 1.0
LONGEST_COMPLAINT = 400

# The names of each program; the first is also the name of its Debian package.
PROMETHEUS = ("prometheus",)
ALERTMANAGER = ("prometheus-alertmanager", "alertmanager")
GRAFANA = ("grafana", "grafana-server")


def find(names: Sequence[str]) -> str | None:
    """Return the path of the first of these programs that is on PATH."""
    return next(filter(None, map(shutil.which, names)), None)


def find_all(*programs: Sequence[str]) -> list[str]:
    """Return the paths of programs. Raises LabError that names each missing one with its package."""
    paths = [find(names) for names in programs]
    if missing := [names[0] for names, path in zip(programs, paths, strict=True) if path is None]:
        raise LabError(
            f"lab: {' and '.join(missing)} not found on PATH; on Debian: apt install {' '.join(missing)}"
        )
    return [path for path in paths if path is not None]


async def answers(address: Address, path: str) -> bool:
    """Whether an HTTP server answers 200."""
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(ANSWER_SECONDS):
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: {address[0]}\r\n\r\n".encode())
            return (await stream.receive_some(64)).split()[1:2] == [b"200"]
    return False


@dataclass
class Program:
    """A child process with a listener.

    healthy: the path that answers 200 when the program is ready. log: the file for its output. variables: are
    added to its environment.
    """

    name: str
    command: Sequence[str]
    log: Path
    address: Address = (LOOPBACK, 0)
    healthy: str = "/-/ready"
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address of its web page."""
        return f"http://{self.address[0]}:{self.address[1]}/"

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run it until cancelled. Reports when it is ready; raises LabError if it ends by itself."""
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

    async def _open(self, *, stdin: int = subprocess.DEVNULL, stdout: int | None = None) -> trio.Process:
        with self.log.open("wb") as log:
            return await trio.lowlevel.open_process(
                self.command,
                stdin=stdin,
                stdout=log.fileno() if stdout is None else stdout,
                stderr=log.fileno(),
                env=os.environ | self.variables,
                cwd=self.log.parent,
                process_group=0,  # Ctrl-C must reach only the lab, which then ends its programs in order
            )

    async def _ready(self, process: trio.Process) -> None:
        """Wait until the program is ready or has ended."""
        while process.poll() is None and not await answers(self.address, self.healthy):  # noqa: ASYNC110  # another process sets no Event
            await trio.sleep(POLL_SECONDS)

    def _complaint(self) -> str:
        """Return the last line of its output."""
        lines = self.log.read_text("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[-LONGEST_COMPLAINT:]}" if last else ""


class ServerProgram(Program):
    """The lab's triojam server, `triojam.lab.server`. web: the address of its metrics."""

    web: Address = (LOOPBACK, 0)
    _process: trio.Process | None = None

    async def set_clock(self, ahead: float) -> None:
        """Set its clock this many seconds ahead of this machine's."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(trio.BrokenResourceError):  # it has ended, which `run` reports
                await self._process.stdin.send_all(f"{ahead!r}\n".encode())

    def send_signal(self, signum: int) -> None:
        """Send a signal to its process, if it still runs."""
        if self._process is not None:
            self._process.send_signal(signum)

    async def _open(
        self, *, stdin: int = subprocess.PIPE, stdout: int | None = subprocess.PIPE
    ) -> trio.Process:
        self._process = await super()._open(stdin=stdin, stdout=stdout)
        return self._process

    async def _ready(self, process: trio.Process) -> None:
        line = b""
        if process.stdout is not None:
            while not line.endswith(b"\n") and (data := await process.stdout.receive_some()):
                line += data
        if line:
            addresses = json.loads(line)
            self.address, self.web = tuple(addresses["time"]), tuple(addresses["metrics"])
        else:
            await process.wait()


async def _end(process: trio.Process) -> None:
    """Terminate a process, and after a while kill it with its group: the program may be a wrapper script."""
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
