"""A whole triojam process to test: it is started, its log is read, and it is always ended."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.helpers.scrape import Address, Scrape, balanced_at, scrape
from tests.helpers.servers import PATIENCE

COMMAND = (sys.executable, "-m", "triojam")
# Environment variables of a process under load: coverage would slow it down, and other tests reach its lines.
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
FREE_PORTS = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0")


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of this process without settings of triojam, and with `variables`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRIOJAM_")}
    return inherited | {"COLUMNS": "200"} | variables


def memory(pid: int) -> dict[str, int]:
    """Return the memory of a process in KiB, by the fields of smaps_rollup (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
    return {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}


def descriptors(pid: int) -> set[int]:
    """Return the open descriptors of a process."""
    return {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}


class Program:
    """A triojam process. Its stderr is read only while a test waits for a line.

    log: the lines read so far. address, web: the addresses of its two listeners.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self.address: Address = ("", 0)
        self.web: Address = ("", 0)
        self._unread = b""

    async def logged(self, event: str, **values: object) -> dict[str, Any]:
        """Return the next line of the log with this event and these values."""
        with trio.fail_after(PATIENCE):
            while (entry := await self._entry()) is not None:
                if entry["event"] == event and values.items() <= entry.items():
                    return entry
        raise AssertionError(f"no {event!r} {values} among {self.log}")

    async def connect(self) -> trio.SocketStream:
        """Open a connection to the time port."""
        return await trio.open_tcp_stream(*self.address)

    async def scrape(self) -> Scrape:
        """Read the metrics."""
        return await scrape(self.web)

    def descriptors(self) -> set[int]:
        """Return the descriptors that the process has open."""
        return descriptors(self.process.pid)

    async def ended(self) -> int:
        """Read the log to its end, wait for the process, and return its exit status."""
        with trio.fail_after(PATIENCE):
            while await self._entry() is not None:
                pass
            return await self.process.wait()

    async def _entry(self) -> dict[str, Any] | None:
        """Read one line of the log; None at its end."""
        assert self.process.stderr is not None
        while b"\n" not in self._unread:
            data = await self.process.stderr.receive_some()
            if not data:
                assert not self._unread
                return None
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        entry: dict[str, Any] = json.loads(line)
        self.log.append(entry)
        return entry


@asynccontextmanager
async def launched(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[trio.Process]:
    """Start a process; at the end it is killed if it still runs. pass_fds: descriptors that it inherits."""
    process = await trio.lowlevel.open_process(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment(**variables),
        pass_fds=pass_fds,
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        for stream in filter(None, (process.stdout, process.stderr)):
            await stream.aclose()


@asynccontextmanager
async def serving(
    *words: str, ports: Sequence[str] = FREE_PORTS, before: Sequence[str] = (), **variables: str
) -> AsyncIterator[Program]:
    """Run a server on free loopback ports.

    If it still runs after the body, its accounts must balance, it must have no more descriptors than at the
    start, and it must drain with status 0.
    ports: words for other ports. before: words in front of the command, of a program that executes it.
    variables: environment variables.
    """
    async with launched([*before, *COMMAND, *ports, *words], variables) as process:
        program = Program(process)
        addresses = await program.logged("serving")
        program.address = parse_address(addresses["addresses"][0])
        program.web = parse_address(addresses["metrics"][0])
        at_start = len(program.descriptors())
        yield program
        if process.poll() is None:
            await balanced_at(program.web)
            with trio.fail_after(PATIENCE):
                while len(program.descriptors()) > at_start:  # noqa: ASYNC110  # another process sets no Event
                    await trio.sleep(0.01)
            process.terminate()
            assert await program.ended() == 0


def parse_address(address: str) -> Address:
    """Parse HOST:PORT as a server logs it."""
    host, port = address.rsplit(":", 1)
    return host, int(port)
