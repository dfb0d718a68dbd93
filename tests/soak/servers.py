"""The two servers of the soak: one runs all the time, the other is restarted."""

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

from tests.helpers.program import COMMAND, launched, parse_address
from tests.helpers.scrape import Address
from tests.soak.sampling import PASSWORD, USER

# Many deadlines pass in each round; honest clients never reach the limits.
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
# A bad file has one of these lines.
WRONG = ("line_timeout = -1", 'zone = "UTC"', "port = 70000", "line_timeout = ")

BCRYPT_COST = 10
# The time limit for an expected log line, in seconds.
WAKE_PATIENCE = 30.0
RELOADED, RELOAD_FAILED = "settings reloaded", "settings not reloaded, the old ones stay"


@dataclass
class Log:
    """The log of a server. events: counts by level and name. grave: the last lines from level error on."""

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
        """Wait for this number of lines about an event, and return the last."""
        with trio.fail_after(WAKE_PATIENCE):
            while self.times(event) < times:
                assert not self.ended, f"no {event!r} before its end; grave: {self.grave}"
                await self.changed.wait()
        return self.last[event]

    def times(self, event: str) -> int:
        """Return the number of lines about an event, at any level."""
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
    """The process of a server. reloads: the number of requested ones by expected result."""

    process: trio.Process
    log: Log
    folder: Path
    authority: trustme.CA
    reloads: Counter[str] = field(default_factory=Counter)

    async def reload(self, *, wrong: str | None) -> None:
        """Reload with a new certificate or a wrong value, and wait for the log line."""
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
        """Drain it, and return its exit status and its last log line."""
        self.process.send_signal(signal.SIGTERM)
        stopped = await self.log.until("stopped")
        with trio.fail_after(WAKE_PATIENCE):
            return await self.process.wait(), stopped

    def address(self, listener: str) -> Address:
        """Return the address of a listener from its log."""
        return parse_address(self.log.last["serving"][listener][0])


def write_settings(folder: Path, *, wrong: str | None = None, **changes: object) -> None:
    """Write the settings file of a server."""
    values = SETTINGS | {name: str(folder / name) for name in FILES} | changes
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    name = (wrong or "").partition(" ")[0]
    lines = [line for line in lines if line.partition(" ")[0] != name] + [wrong or ""]
    (folder / "triojam.toml").write_text("\n".join(lines) + "\n", "utf-8")


def write_certificate(folder: Path, authority: trustme.CA) -> None:
    """Write a new certificate and its key."""
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
    """Run a server with its settings in a folder, and read its log. It is killed at the end."""
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
