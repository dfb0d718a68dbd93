"""The lab's child processes: found on PATH, started, waited for, and always ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import trio

from triojam.errors import LabError, invalid_value
from triojam.lab import cleaner
from triojam.lab.network import Network, in_url
from triojam.lab.pages import get

Address = tuple[str, int]

START_SECONDS = 60.0  # the first start of Grafana takes long
STOP_SECONDS = 4.0
KILLED_SECONDS = 2.0
POLL_SECONDS = 0.05
ANSWER_SECONDS = 1.0
CLEAN_SECONDS = 8.0  # the cleaner itself gives up earlier
LONGEST_COMPLAINT = 400
MEGABYTE = 1_000_000
LEAST_FREE_BYTES = 50 * MEGABYTE

# The names of each program; the first is also the name of its Debian package.
PROMETHEUS = ("prometheus",)
ALERTMANAGER = ("prometheus-alertmanager", "alertmanager")
GRAFANA = ("grafana", "grafana-server")
HAPROXY = ("haproxy",)
# Debian has some of them there, and not every user has it on PATH.
FOR_ADMINISTRATORS = "/usr/sbin"


def find(names: Sequence[str]) -> str | None:
    """Return the path of the first of these programs that is on PATH or in /usr/sbin."""
    found = (shutil.which(name) or shutil.which(name, path=FOR_ADMINISTRATORS) for name in names)
    return next(filter(None, found), None)


def find_all(*programs: Sequence[str]) -> list[str]:
    """Return the paths of programs. Raises LabError that names each missing one with its package."""
    paths = [find(names) for names in programs]
    if missing := [names[0] for names, path in zip(programs, paths, strict=True) if path is None]:
        raise LabError(
            f"lab: {' and '.join(missing)} not found on PATH; on Debian: apt install {' '.join(missing)}"
        )
    return [path for path in paths if path is not None]


@dataclass(frozen=True)
class Home:
    """Where a lab's programs live. group: the process group that they join."""

    folder: Path
    group: int
    network: Network
    cleaner: trio.Process

    async def watch(self) -> None:
        """Wait for the cleaner, which does not end before the lab. Raises LabError."""
        status = await self.cleaner.wait()
        raise LabError(f"lab: its cleaner has ended by itself, status {status}")


def parent_folder() -> Path:
    """Return the folder for temporary folders. Raises ConfigurationError or LabError if there is none."""
    named = os.environ.get("TMPDIR")
    if named and not (Path(named).is_dir() and os.access(named, os.W_OK | os.X_OK)):
        raise invalid_value(named, "TMPDIR", "a folder to write to")
    try:
        return Path(named or tempfile.gettempdir()).absolute()
    except OSError as exc:
        raise LabError(f"lab: {exc.strerror}; set TMPDIR to a folder to write to") from None


@asynccontextmanager
async def make_home(parent: Path, network: Network) -> AsyncIterator[Home]:
    """Make a temporary folder. At the end, or when the lab is killed, a cleaner ends all and removes it."""
    space = shutil.disk_usage(parent)
    if space.total and space.free < LEAST_FREE_BYTES:  # Prometheus would run, and keep nothing
        free, wanted = space.free // MEGABYTE, LEAST_FREE_BYTES // MEGABYTE
        raise LabError(f"lab: {parent} has {free} MB of free space, less than {wanted} MB")
    process = await trio.lowlevel.open_process(
        # Isolated: modules in the working directory must not take the place of Python's own.
        [sys.executable, "-I", str(cleaner.__file__), str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # Ctrl-C must not reach it
    )
    folder: Path | None = None
    try:
        made = json.loads(await _read_line(process) or '{"error": "the cleaner has failed"}')
        if "error" in made:
            raise invalid_value(str(parent), "TMPDIR", f"a folder to write to: {made['error']}")
        folder = Path(made["folder"])
        yield Home(folder, made["group"], network, process)
    finally:
        with trio.CancelScope(deadline=trio.current_time() + CLEAN_SECONDS, shield=True):
            await _close(process)
            await process.wait()
        if folder is not None:  # the cleaner may have been killed
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Program:
    """A child process with a listener.

    healthy: the path below its URL that answers 200 when the program is ready. variables: are added to its
    environment.
    """

    name: str
    command: Sequence[str]
    home: Home
    address: Address
    healthy: str = "-/ready"
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The address of its web page."""
        return f"http://{self.instance}/"

    @property
    def instance(self) -> str:
        """Its address in Prometheus, the label `instance`."""
        return f"{in_url(self.address[0])}:{self.address[1]}"

    @property
    def log(self) -> Path:
        """The file of its output."""
        return self.home.folder / f"{self.name.split()[-1].lower()}.log"

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
            try:
                return await trio.lowlevel.open_process(
                    self.command,
                    stdin=stdin,
                    stdout=log.fileno() if stdout is None else stdout,
                    stderr=log.fileno(),
                    env=os.environ | self.variables,
                    cwd=self.home.folder,
                    # Ctrl-C must reach only the lab, and the cleaner must reach all of them.
                    process_group=self.home.group,
                )
            except OSError as exc:
                raise LabError(f"lab: {self.command[0]} cannot be started: {exc.strerror}") from None

    async def _ready(self, process: trio.Process) -> None:
        """Wait until the program is ready or has ended."""
        while process.poll() is None:
            if (await get(f"{self.url}{self.healthy}", ANSWER_SECONDS)).status == HTTPStatus.OK:
                return
            await trio.sleep(POLL_SECONDS)

    def _complaint(self) -> str:
        """Return the last line of its output."""
        lines = self.log.read_text("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[-LONGEST_COMPLAINT:]}" if last else ""


@dataclass
class ServerProgram(Program):
    """The lab's triojam server, `triojam.lab.server`. web: the address of its metrics."""

    web: Address = ("", 0)
    _process: trio.Process | None = None
    _killed: trio.Event | None = None  # is set when the next process may start

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run it until cancelled, with a new process after `kill` and `start_again`."""
        while True:
            try:
                await super().run(task_status=task_status)
            except LabError:
                if self._killed is None:
                    raise
                await self._killed.wait()
            self._killed = None
            task_status = trio.TASK_STATUS_IGNORED

    @property
    def instance(self) -> str:
        """The address of its metrics."""
        return f"{in_url(self.web[0])}:{self.web[1]}"

    def kill(self) -> None:
        """Kill its process, as the kernel does when memory is short."""
        self._killed = trio.Event()
        self.send_signal(signal.SIGKILL)

    def start_again(self) -> None:
        """Start it again after `kill`, on the same ports."""
        if self._killed is not None:
            self._killed.set()

    async def set_clock(self, ahead: float) -> None:
        """Set its clock this many seconds ahead of this machine's."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it has ended, or ends
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
        if not await _read_line(process):
            await process.wait()


async def _read_line(process: trio.Process) -> bytes:
    """Read the first line of a process; empty if it ends before."""
    line = b""
    while process.stdout is not None and not line.endswith(b"\n"):
        if not (data := await process.stdout.receive_some()):
            return b""
        line += data
    return line


async def _close(process: trio.Process) -> None:
    """Close the pipes of a process."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            await stream.aclose()


async def _end(process: trio.Process) -> None:
    """Terminate a process, and after a while kill it; the cleaner kills its children."""
    asked = trio.CancelScope(deadline=trio.current_time() + STOP_SECONDS, shield=True)
    killed = trio.CancelScope(deadline=asked.deadline + KILLED_SECONDS, shield=True)
    try:
        with asked:
            if process.stdin is not None:
                await process.stdin.aclose()
            else:
                process.terminate()
            await process.wait()
    finally:
        process.kill()
        with killed:
            await process.wait()
            await _close(process)
