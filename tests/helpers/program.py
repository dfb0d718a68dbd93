"""A whole triojam process to test against: started, listened to, asked, and ended whatever happens."""

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
FREE_PORTS = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0")


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment, with `variables` instead of any settings in it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRIOJAM_")}
    return inherited | {"COLUMNS": "200"} | variables


class Program:
    """A triojam process. What it writes to stderr is read only while someone waits for a line of it.

    log: the lines read so far. address, web: of its two listeners.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self.address: Address = ("", 0)
        self.web: Address = ("", 0)
        self._unread = b""

    async def logged(self, event: str, **values: object) -> dict[str, Any]:
        """Return the next line of the log that is about `event` with these values."""
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
        return {int(each.name) for each in Path(f"/proc/{self.process.pid}/fd").iterdir()}

    async def ended(self) -> int:
        """Return the exit status, once the process has ended and its log is read to the end."""
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
    stdout: int | None = None,
    stderr: int = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[trio.Process]:
    """Start a process that is killed at the end, if it still runs. pass_fds: descriptors that it inherits."""
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
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
    """Run a server on free ports of loopback; if the body leaves it running, it must balance and drain.

    By then no descriptor may be left of what the body has done.
    ports: words that choose others. before: words in front of the command, of a program that becomes it.
    variables: of its environment.
    """
    async with launched([*before, *COMMAND, *ports, *words], variables) as process:
        program = Program(process)
        addresses = await program.logged("serving")
        program.address = _parse(addresses["addresses"][0])
        program.web = _parse(addresses["metrics"][0])
        at_start = len(program.descriptors())
        yield program
        if process.poll() is None:
            await balanced_at(program.web)
            with trio.fail_after(PATIENCE):
                while len(program.descriptors()) > at_start:  # noqa: ASYNC110  # another process sets no Event
                    await trio.sleep(0.01)
            process.terminate()
            assert await program.ended() == 0


def _parse(address: str) -> Address:
    host, port = address.rsplit(":", 1)
    return host, int(port)
