"""The soak's two servers: one that lives as long as the run, and one that is restarted all the time."""

import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bcrypt
import trio
import trustme

from tests.helpers.program import COMMAND, launched
from tests.helpers.scrape import Address
from tests.soak.sampling import PASSWORD, USER

# Deadlines short enough for many to pass in every round, and limits that honest clients never reach.
SETTINGS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "metrics_port": 0,
    "timezone": "UTC",
    "idle_timeout": 3,
    "line_timeout": 2,
    "send_timeout": 1,
    "max_connections": 1000,
    "log_format": "json",
    "tls_port": 0,
    "deny": "127.0.66.0/24",
    "connections_per_source": 64,
    "rate_per_source": 5000,
    "burst_per_source": 20_000,
}
FILES = ("tls_certificate", "tls_key", "metrics_passwords")
# One of a file's values at a time is made wrong.
WRONG = ("line_timeout = -1", 'zone = "UTC"', "port = 70000", "line_timeout = ")

BCRYPT_COST = 10
# How long a server may take to say that it has done what it was told, in seconds.
WAKE_PATIENCE = 30.0
RELOADED, RELOAD_FAILED = "settings reloaded", "settings not reloaded, the old ones stay"


@dataclass
class Log:
    """What a server has logged. events: by level and name. grave: the last lines of level error and above."""

    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    grave: list[str] = field(default_factory=list)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Read to the end."""
        unread = b""
        async for data in stream:
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                self._take(line)
            self._tell()
        self.ended = True
        self._tell()

    async def until(self, event: str, times: int = 1) -> dict[str, Any]:
        """Return the last line about an event, once there have been so many."""
        with trio.fail_after(WAKE_PATIENCE):
            while self.times(event) < times:
                assert not self.ended, f"no {event!r} before its end; grave: {self.grave}"
                await self.changed.wait()
        return self.last[event]

    def times(self, event: str) -> int:
        """Return how often there was such a line, at any level."""
        return sum(times for (_, name), times in self.events.items() if name == event)

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except ValueError:  # a traceback of an interpreter that failed
            entry = {"level": "error", "event": line.decode(errors="replace")}
        level, event = entry.get("level", "error"), entry["event"]
        self.events[level, event] += 1
        self.last[event] = entry
        if level not in ("debug", "info", "warning") and event != RELOAD_FAILED:
            self.grave = [*self.grave[-9:], line.decode(errors="replace")]


@dataclass
class Running:
    """A server's process. reloads: how many were asked for, good ones and bad ones."""

    process: trio.Process
    log: Log
    folder: Path
    authority: trustme.CA
    reloads: Counter[str] = field(default_factory=Counter)

    async def reload(self, *, wrong: str | None) -> None:
        """Have it read its file again, with a new certificate or a wrong value; wait until it has said so."""
        result, event = ("success", RELOADED) if wrong is None else ("failure", RELOAD_FAILED)
        before = self.log.times(event)
        self.reloads[result] += 1
        if wrong is None:
            write_certificate(self.folder, self.authority)
        write_settings(self.folder, line_timeout=2 + self.reloads["success"] % 2, wrong=wrong)
        self.process.send_signal(signal.SIGHUP)
        await self.log.until(event, before + 1)
        if wrong is not None:
            write_settings(self.folder)

    async def stop(self) -> tuple[int, dict[str, Any]]:
        """Drain it; return its exit status and its last totals."""
        self.process.send_signal(signal.SIGTERM)
        stopped = await self.log.until("stopped")
        with trio.fail_after(WAKE_PATIENCE):
            return await self.process.wait(), stopped

    def address(self, listener: str) -> Address:
        """Return where it listens, as it has logged it; nowhere, if it does not."""
        (where,) = self.log.last["serving"].get(listener) or ["127.0.0.1:0"]
        host, port = where.rsplit(":", 1)
        return host, int(port)


def write_settings(folder: Path, *, wrong: str | None = None, **changes: object) -> None:
    """Write a server's settings file."""
    values = SETTINGS | {name: str(folder / name) for name in FILES} | changes
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    name = (wrong or "").partition(" ")[0]
    lines = [line for line in lines if line.partition(" ")[0] != name] + [wrong or ""]
    (folder / "triojam.toml").write_text("\n".join(lines) + "\n", "utf-8")


def write_certificate(folder: Path, authority: trustme.CA) -> None:
    """Write a new certificate, and its key."""
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(folder / "tls_key")
    (folder / "tls_certificate").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))


@asynccontextmanager
async def running(
    folder: Path,
    authority: trustme.CA,
    command: Sequence[str] = COMMAND,
    *,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Running]:
    """Run a server with its settings in a folder, and read its log; kill it at the end, if it still runs."""
    write_certificate(folder, authority)
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(BCRYPT_COST)).decode()
    (folder / "metrics_passwords").write_text(f"{USER}:{hashed}\n", "utf-8")
    write_settings(folder)
    config = str(folder / "triojam.toml")
    async with (
        launched([*command, "--config", config], {}, pass_fds=pass_fds) as process,
        trio.open_nursery() as nursery,
    ):
        assert process.stderr is not None
        log = Log()
        nursery.start_soon(log.read, process.stderr)
        await log.until("serving")
        yield Running(process, log, folder, authority)
        if process.poll() is None:
            process.kill()  # so that its log ends
