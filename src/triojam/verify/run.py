"""Judges several servers, and starts and ends those that `--command` names."""

import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from functools import partial
from pathlib import Path

import trio

from triojam.client.session import DEFAULT_PORT, Target
from triojam.errors import ConfigurationError, invalid_value
from triojam.process import keeper as process_keeper
from triojam.verify.judge import Finding, Rule, Verdict, judge
from triojam.verify.subject import Subject

LOOPBACK = "127.0.0.1"
SUBMISSION, PORT = "{}", "{port}"
AT_ONCE = 8
START_SECONDS = 10.0
FREE_SECONDS = 65.0  # TIME_WAIT lasts a minute
STOP_SECONDS = 8.0  # the keeper takes less
POLL_SECONDS = 0.05
STDERR_SECONDS = 0.1
STDERR_BYTES, STDERR_LINES = 4000, 12
LISTENING = "0A"  # in /proc/net/tcp
IN_USE = re.compile(rb"(?i)address.*in use|EADDRINUSE")
STARTED = (b"", b"0\n")  # a daemon ends with 0, and its child listens


@dataclass(frozen=True, kw_only=True)
class Options:
    """How servers are judged; see `Subject` and `judge`."""

    rules: Sequence[Rule]
    slow: bool = False
    patience: float = 5.0
    tls: ssl.SSLContext | None = None
    zone: tzinfo | None = None


@dataclass(frozen=True)
class Server:
    """A server to judge. command: starts it; empty: it runs already."""

    name: str
    target: Target
    command: tuple[str, ...] = ()


@dataclass
class Report:
    """What was found about a server."""

    server: Server
    findings: list[Finding] = field(default_factory=list)


def servers_of(command: str | None, words: Sequence[str], port: int | None) -> list[Server]:
    """Return the servers that a command line names. Raises ConfigurationError.

    command: with {} in it, the words are submissions, and each takes the place of {}. {port} is a free port.
    """
    if command is None:
        if port is not None:
            raise ConfigurationError("--port is for --command: expected HOST:PORT for a server that runs")
        return [Server(str(target), target) for target in map(_target, words or (LOOPBACK,))]
    parts = _split(command)
    any_port = port is None and any(PORT in part for part in parts)

    def start(submission: str, name: str) -> Server:
        target = Target(LOOPBACK, free_port() if any_port else port or DEFAULT_PORT)
        filled = [part.replace(PORT, str(target.port)).replace(SUBMISSION, submission) for part in parts]
        return Server(name, target, tuple(filled))

    if any(SUBMISSION in part for part in parts):
        if not words:
            raise ConfigurationError("--command has {}: expected the submissions that take its place")
        return [start(word, word) for word in words]
    if words:
        raise ConfigurationError("--command without {} starts one server: expected no SERVERS")
    return [start("", shlex.join(parts))]


def _target(word: str) -> Target:
    try:
        return Target.parse(word)
    except ValueError as exc:
        raise invalid_value(word, "SERVERS", str(exc)) from exc


def _split(command: str) -> list[str]:
    try:
        parts = shlex.split(command)
    except ValueError as exc:
        raise invalid_value(command, "--command", f"the words of a command ({str(exc).lower()})") from exc
    if not parts or (SUBMISSION not in parts[0] and shutil.which(parts[0]) is None):
        raise invalid_value(command, "--command", "a program that can be started, and its arguments")
    return parts


def free_port() -> int:
    """Return a port that no program uses at this moment."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


async def judge_all(
    reports: Sequence[Report],
    options: Options,
    *,
    show: Callable[[Finding], None] = lambda _finding: None,
    done: Callable[[Report], None] = lambda _report: None,
) -> None:
    """Judge the servers of these reports: a few at once, and those on the same port one after the other.

    show: gets each finding. done: gets the report of each server at its end.
    """
    limit = trio.CapacityLimiter(AT_ONCE)
    turns = {each.server.target: trio.Lock() for each in reports}

    async def judge_one(report: Report) -> None:
        async with turns[report.server.target], limit:
            await _judge_one(report, options, show)
        done(report)

    async with trio.open_nursery() as nursery:
        for report in reports:
            nursery.start_soon(judge_one, report)
            await trio.lowlevel.checkpoint()  # in their order


async def _judge_one(report: Report, options: Options, show: Callable[[Finding], None]) -> None:
    server = report.server
    subject = Subject(server.target, patience=options.patience, tls=options.tls, zone=options.zone)

    def keep(finding: Finding) -> None:
        report.findings.append(finding)
        show(finding)

    note = keep
    if not server.command:
        await judge(subject, options.rules, slow=options.slow, show=note)
        return
    async with running(server) as program:
        if not await program.restart():
            note = partial(_note_start, note, program.trouble)
        await judge(
            subject,
            options.rules,
            slow=options.slow,
            show=note,
            revive=program.restart,
            stderr=program.stderr,
        )


def _note_start(note: Callable[[Finding], None], trouble: str, finding: Finding) -> None:
    """Let the rule that fails because the server never listened say so."""
    failed = finding.verdict is Verdict.FAILS
    note(replace(finding, reason=f"{trouble} ({finding.reason})") if failed else finding)


@asynccontextmanager
async def running(server: Server) -> "AsyncIterator[Program]":
    """Have a program that is ended with all its children."""
    async with trio.open_nursery() as nursery:
        program = Program(server, nursery)
        try:
            yield program
        finally:
            await program.stop()
        nursery.cancel_scope.cancel()


class Program:
    """A server that is started with a command, under a keeper. trouble: why it does not listen."""

    def __init__(self, server: Server, nursery: trio.Nursery) -> None:
        self._server = server
        self._nursery = nursery
        self._keeper: trio.Process | None = None
        self._status = bytearray()
        self._stderr = bytearray()
        self.trouble = ""

    async def restart(self) -> bool:
        """Start the command, after the end of an earlier start; return whether it listens.

        Raises ConfigurationError if another program has the port.
        """
        port = self._server.target.port
        await self.stop()
        if LISTENING in port_states(port):
            raise ConfigurationError(f"another program listens on port {port}: end it, or use --port")
        if await self._start():
            return True
        if IN_USE.search(self._stderr):
            # Connections of the last minute hold the port of a server that does not set SO_REUSEADDR.
            with trio.move_on_after(FREE_SECONDS):
                while port_states(port):  # noqa: ASYNC110  # the kernel sets no Event
                    await trio.sleep(POLL_SECONDS)
            await self.stop()
            return await self._start()
        return False

    async def _start(self) -> bool:
        self._status = status = bytearray()
        self._stderr.clear()
        self._keeper = await trio.lowlevel.open_process(
            # -I: modules in the working directory, which may be a student's, are not for the keeper.
            [sys.executable, "-I", str(process_keeper.__file__), *self._server.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C must reach only the judge
        )
        self._nursery.start_soon(self._read, self._keeper, status)
        return await self._listens()

    async def stop(self) -> None:
        """End the command and all its children."""
        if self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        with trio.CancelScope(shield=True):
            if keeper.stdin is not None:
                await keeper.stdin.aclose()
            with trio.move_on_after(STOP_SECONDS):
                await keeper.wait()
            keeper.kill()
            await keeper.wait()

    async def stderr(self, wanted: bool) -> str:  # noqa: FBT001  # one question
        """Return the last lines that the server has written to stderr since the last call, or forget them."""
        if not wanted:
            self._stderr.clear()
            return ""
        await trio.sleep(STDERR_SECONDS)  # the pipe may have more
        text = self._stderr.decode("utf-8", "replace")
        self._stderr.clear()
        lines = ["".join(each if each.isprintable() else " " for each in line) for line in text.splitlines()]
        return "\n".join(line.rstrip() for line in lines[-STDERR_LINES:])

    async def _read(self, keeper: trio.Process, status: bytearray) -> None:
        async def read_stderr() -> None:
            if keeper.stderr is not None:
                async for data in keeper.stderr:
                    self._stderr += data
                    del self._stderr[:-STDERR_BYTES]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_stderr)
            if keeper.stdout is not None:
                async for data in keeper.stdout:
                    status += data

    async def _listens(self) -> bool:
        """Wait until the server listens; it may also have ended, or never listen."""
        target = self._server.target
        with trio.move_on_after(START_SECONDS):
            while bytes(self._status) in STARTED:
                with suppress(OSError):
                    stream = await trio.open_tcp_stream(target.host, target.port)
                    await trio.aclose_forcefully(stream)
                    return True
                await trio.sleep(POLL_SECONDS)
        await trio.sleep(STDERR_SECONDS)  # the pipe may have more
        ended = self._status.decode().strip()
        self.trouble = (
            f"the command ended with status {ended}, and did not listen on port {target.port}"
            if ended
            else f"the command did not listen on port {target.port} within {START_SECONDS:g} s"
        )
        return False


def port_states(port: int) -> set[str]:
    """Return the states of this machine's TCP sockets with this port; empty where there is no /proc."""
    states = set()
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text("ascii").splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if int(local.rpartition(":")[2], 16) == port:
                    states.add(state)
    return states
