"""A server on a terminal: the text from its start to its end."""

import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import trio

from tests.helpers.program import COMMAND, FREE_PORTS, launched, serving
from tests.helpers.servers import PATIENCE, authority
from triojam.version import __version__

ESCAPES = re.compile(r"\x1b\[[\d;]*m")
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


class Terminal:
    """The screen of a server, and its process."""

    def __init__(self, stream: trio.lowlevel.FdStream, process: trio.Process) -> None:
        self._stream = stream
        self.process = process
        self.raw = self.text = ""

    async def shows(self, pattern: str) -> re.Match[str]:
        """Wait until a pattern is on the screen."""
        with trio.fail_after(PATIENCE):
            while (match := re.search(pattern, self.text)) is None:
                self.raw += (await self._stream.receive_some()).decode()
                self.text = ESCAPES.sub("", self.raw)
        return match


@asynccontextmanager
async def on_terminal(*words: str, **variables: str) -> AsyncIterator[Terminal]:
    """Start a server whose stderr is a terminal."""
    master, slave = os.openpty()
    try:
        async with (
            trio.lowlevel.FdStream(master) as stream,
            launched([*COMMAND, *words], {"TERM": "xterm"} | variables, stderr=slave) as process,
        ):
            yield Terminal(stream, process)
    finally:
        os.close(slave)


@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_log_on_a_terminal_has_colours_unless_it_is_json(log_format: str) -> None:
    """On a terminal the log is coloured text; --log-format json gives one object a line."""
    words = ["--log-format", "json"] if log_format == "json" else []
    async with on_terminal(*FREE_PORTS, *words) as terminal:
        await terminal.shows("serving")
        terminal.process.terminate()
        await terminal.shows(r"stopped.*\n")
        assert await terminal.process.wait() == 0
    assert ("\x1b[" in terminal.raw) == (log_format == "console")
    assert {line.startswith("{") for line in terminal.text.splitlines()} == {log_format == "json"}


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),  # as if it were not set (no-color.org)
        ({"TERM": "dumb"}, False),
    ],
)
async def test_a_terminal_may_be_without_colours(variables: dict[str, str], *, coloured: bool) -> None:
    """NO_COLOR and TERM=dumb leave the log without escape sequences."""
    async with on_terminal(*FREE_PORTS, **variables) as terminal:
        await terminal.shows("serving")
        terminal.process.terminate()
        await terminal.shows(r"stopped.*\n")
    assert ("\x1b" in terminal.raw) is coloured


async def test_the_start_is_one_line_in_local_time() -> None:
    """The first line says the version, the ports, the page and how to stop, and has no microseconds."""
    async with on_terminal(*FREE_PORTS, TZ="Asia/Jakarta") as terminal:
        match = await terminal.shows(
            rf"({STAMP}) \[info +\] triojam {re.escape(__version__)}: serving on 127\.0\.0\.1:\d+; "
            r"metrics and live page at http://127\.0\.0\.1:\d+/ — Ctrl-C to stop\r\n"
        )
        assert "serving" not in terminal.text[: match.start()]
        said = datetime.fromisoformat(match[1]).replace(tzinfo=ZoneInfo("Asia/Jakarta"))
        assert abs(datetime.now(UTC) - said) < timedelta(minutes=1)
        terminal.process.terminate()
        await terminal.shows("stopped")


async def test_a_terminal_shows_the_certificate_in_sentences(tmp_path: Path) -> None:
    """The start, a reload and a warning are one readable line each, with the certificate and its end."""
    file = tmp_path / "server.pem"
    ends = datetime.now(UTC) + timedelta(days=3)
    issued = authority().issue_cert("localhost", not_after=ends)
    file.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    until = ends.strftime("%Y-%m-%dT%H:%M:%SZ")
    async with on_terminal(*FREE_PORTS, "--tls-port=0", f"--tls-certificate={file}") as terminal:
        await terminal.shows(rf"; certificate for localhost until {until} — Ctrl-C to stop\r\n")
        warning = rf"\[warning +\] the TLS certificate for localhost ends at {until}, in 3 days\r\n"
        await terminal.shows(warning)
        file.write_bytes(authority().issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
        terminal.process.send_signal(signal.SIGHUP)
        await terminal.shows(
            r"settings reloaded; changed: tls_certificate; certificate for localhost until 3000-01-01T\S+\r\n"
        )
        terminal.process.send_signal(signal.SIGHUP)
        await terminal.shows("settings reloaded; changed: nothing; certificate for localhost")
        terminal.process.terminate()
        await terminal.shows("stopped")


async def test_the_first_ctrl_c_says_that_a_second_ends_at_once() -> None:
    """The drain's first line says how long it may take, and how to cut it short; a second Ctrl-C does so."""
    async with on_terminal(*FREE_PORTS, "--grace", "600", "--idle-timeout", "0") as terminal:
        port = int((await terminal.shows(r"serving on 127\.0\.0\.1:(\d+);"))[1])
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"TIME\r\nTI")
            assert (await client.receive_some()).startswith(b"JAM ")
            terminal.process.send_signal(signal.SIGINT)
            await terminal.shows(
                r"stopping: the clients \(1 connected\) have up to 600 s; a second Ctrl-C ends"
            )
            terminal.process.send_signal(signal.SIGINT)
            with trio.fail_after(PATIENCE):
                assert await terminal.process.wait() == 128 + signal.SIGINT


async def test_descriptors_are_mentioned_only_when_raised() -> None:
    """A start at the hard limit says nothing about file descriptors; one below it says both limits."""
    lowered = ["bash", "-c", 'ulimit -Sn 256; exec "$@"', "bash"]
    async with serving(before=lowered) as program:
        assert program.log[0]["event"] == "file descriptors raised"
        assert program.log[0]["raised_from"] == 256
        assert program.log[0]["limit"] > 256
    fixed = ["bash", "-c", 'ulimit -n 1024; exec "$@"', "bash"]
    async with serving(before=fixed) as program:
        assert program.log[0]["event"] == "serving"


async def test_json_keeps_the_fields_of_the_start() -> None:
    """A program that reads the log finds the addresses in fields, none of which is called time."""
    async with serving() as program:
        started = next(entry for entry in program.log if entry["event"] == "serving")
        assert {"addresses", "tls", "metrics", "connections_limit", "version"} <= started.keys()
        assert not {"time", "sentence"} & started.keys()
