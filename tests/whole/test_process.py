"""A whole process: its start, its descriptors, its log and its standard streams."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.helpers.program import COMMAND, FREE_PORTS, Program, environment, launched, serving
from tests.helpers.scrape import fetch
from tests.helpers.servers import PATIENCE, receive_all, receive_exactly, until
from tests.helpers.sockets import JAM_BYTES


async def ask(program: Program, requests: bytes) -> bytes:
    """Send requests on a new connection, end the sending side, and return all that comes back."""
    async with await program.connect() as client, trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_all(requests)
            await client.send_eof()

        nursery.start_soon(send)  # the server stops reading while its answers are not read
        return await receive_all(client)


async def test_serving_line_names_both_addresses() -> None:
    """One address of the serving line gives the time, the other gives health."""
    async with serving() as program:
        answer = await ask(program, b"TIME\r\n")
        assert answer.startswith(b"JAM ")
        assert len(answer) == JAM_BYTES
        assert (await fetch(program.web, "/readyz")).text == "ready\n"


async def test_log_on_a_pipe_has_one_json_object_a_line() -> None:
    """Each stage from start to stop is one JSON object with its event, level and time in UTC."""
    async with serving() as program:
        await ask(program, b"TIME\r\nHELLO\r\n")
        program.process.terminate()
        assert await program.ended() == 0
    events = [entry["event"] for entry in program.log]
    assert events[events[0] == "file descriptors raised" :] == [
        "serving",
        "draining: not ready",
        "draining: no new clients",
        "draining: no clients left",
        "stopped",
    ]
    assert {entry["level"] for entry in program.log} == {"info"}
    assert all(entry["timestamp"].endswith("Z") for entry in program.log)
    last = program.log[-1]
    assert (last["requests"], last["responses"], last["rejected"], last["connections"]) == (2, 1, 1, 0)


async def test_console_on_a_pipe_has_no_escapes() -> None:
    """--log-format console on a pipe writes no escape sequences, even if a client has sent some."""
    command = [*COMMAND, *FREE_PORTS, "--log-format", "console", "--log-level", "debug"]
    async with launched(command, {}) as process:
        assert process.stderr is not None
        text = b""
        with trio.fail_after(PATIENCE):
            while b"serving" not in text:
                text += await process.stderr.receive_some()
            port = re.search(rb"serving on 127\.0\.0\.1:(\d+)", text)
            assert port
            async with await trio.open_tcp_stream("127.0.0.1", int(port[1])) as client:
                await client.send_all(b"\x1b]0;owned\x07\x00\xff\x9b31m" + b"x" * 200 + b"\r\n")
                await client.send_eof()
                assert (await receive_all(client)).startswith(b"ERROR bad_command: ")
            process.terminate()
            async for data in process.stderr:
                text += data
            assert await process.wait() == 0
    assert b"stopped" in text
    (about,) = (line for line in text.splitlines() if b"request rejected" in line)
    assert b"owned" in about
    assert len(about) < 200
    assert not set(text) & {0x00, 0x07, 0x1B, 0x9B, 0xFF}


async def test_stalled_log_reader_does_not_stall_serving() -> None:
    """While stderr is not read, log lines are dropped and counted, and requests are answered."""
    async with serving("--log-level", "debug") as program:
        rounds = 4000  # one debug line each: more than the pipe and the queue hold
        answers = await ask(program, b"HELLO\r\nTIME\r\n" * rounds)
        assert answers.count(b"JAM ") == answers.count(b"ERROR bad_command") == rounds
        seen = await program.scrape()
        assert seen.total("triojam_log_messages_dropped_total") > 0
        assert seen.unaccounted == 0
        program.process.terminate()
        with trio.fail_after(PATIENCE):
            assert await program.process.wait() == 0


async def test_server_survives_the_end_of_its_log_reader() -> None:
    """After stderr was closed (`| head -1`), lines are dropped and counted, and requests are answered."""
    async with serving("--log-level", "debug") as program:
        assert program.process.stderr is not None
        await program.process.stderr.aclose()
        with trio.fail_after(PATIENCE):
            while not (seen := await program.scrape()).total("triojam_log_messages_dropped_total"):
                assert (await ask(program, b"HELLO\r\nTIME\r\n")).count(b"JAM ") == 1
        assert seen.unaccounted == 0
        program.process.terminate()
        with trio.fail_after(PATIENCE):
            assert await program.process.wait() == 0


async def test_connections_leave_descriptors_free() -> None:
    """Of 256 descriptors, 64 stay free: 192 clients are served, the next gets busy, and scrapes work."""
    async with serving(
        "--idle-timeout", "0", before=["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
    ) as program:
        assert program.log[-1]["connections_limit"] == 192
        clients = [await program.connect() for _ in range(192)]
        for client in clients:
            await client.send_all(b"TIME\r\n")
            assert len(await receive_exactly(client, JAM_BYTES)) == JAM_BYTES
        async with await program.connect() as one_more:
            assert (await receive_all(one_more)).startswith(b"ERROR busy: ")
        seen = await program.scrape()
        assert seen.total("triojam_connections_limit") == 192
        assert seen.total("triojam_connections_open") == 192
        assert seen.total("triojam_connections_rejected_total", reason="busy") == 1
        for client in clients:
            await client.aclose()


async def test_server_without_web_listener_does_not_import_its_libraries() -> None:
    """With metrics_port none, h11 and the HTTP server are not imported; the log has no metrics address."""
    script = (
        "import sys; from triojam.cli.main import main\n"
        "status = main(['--host', '127.0.0.1', '--port', '0', '--metrics-port', 'none'])\n"
        "print(sorted({'h11', 'triojam.web.http_server'} & set(sys.modules)))\n"
        "sys.exit(status)\n"
    )
    async with launched([sys.executable, "-c", script], {}, stdout=subprocess.PIPE) as process:
        program = Program(process)
        assert (await program.logged("serving"))["metrics"] == []
        process.terminate()
        assert await program.ended() == 0
        assert process.stdout is not None
        assert await receive_all(process.stdout) == b"[]\n"


@pytest.mark.parametrize("lane", ["--fast-lane", "--no-fast-lane"])
async def test_an_idle_connection_is_probed(lane: str) -> None:
    """The kernel's timer of an accepted connection is that of keep-alive, and ends within a minute."""
    async with serving(lane, "--idle-timeout", "0") as program, await program.connect() as client:
        await client.send_all(b"TIME\r\n")
        assert len(await receive_exactly(client, JAM_BYTES)) == JAM_BYTES
        ours, theirs = (f":{each[1]:04X}" for each in (client.socket.getsockname(), program.address))

        def timer() -> list[str]:
            rows = [row.split() for row in Path("/proc/net/tcp").read_text("ascii").splitlines()]
            (row,) = (each for each in rows if each[1].endswith(theirs) and each[2].endswith(ours))
            return row[5].split(":")  # which one, and when it ends (proc(5))

        await until(lambda: timer()[0] != "01")  # the client's kernel has acknowledged the answer
        which, ends_in = timer()
        assert which == "02"
        assert int(ends_in, 16) <= 60 * os.sysconf("SC_CLK_TCK")


async def test_a_rejected_line_has_its_peer() -> None:
    """At debug level, the log says which client sent a bad line."""
    async with serving("--log-level", "debug") as program, await program.connect() as client:
        await client.send_all(b"HELLO\r\n")
        host, port = client.socket.getsockname()
        assert (await program.logged("request rejected"))["peer"] == f"{host}:{port}"


@pytest.mark.parametrize("command", ["", "ask", "lab"])
@pytest.mark.parametrize("columns", ["0", "1", "2", "9" * 11, "9" * 5000, "\u00b2"])
def test_help_fits_any_width(command: str, columns: str) -> None:
    """`--help` neither fails nor hangs nor fills the memory, whatever COLUMNS says."""
    ended = subprocess.run(
        [*COMMAND, *command.split(), "--help"],
        env=environment(COLUMNS=columns), capture_output=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.startswith(b"Usage: triojam")
    assert len(ended.stdout) < 1_000_000


@pytest.mark.parametrize("redirection", [">/dev/full", "| true"])
def test_a_system_without_dev_null_gives_no_traceback(redirection: str) -> None:
    """A command whose output is lost ends with one line at most, also in a sandbox without devices."""
    script = (
        "import os, sys; os.devnull = '/no/such/file'\n"
        "from triojam.cli.main import main\n"
        "sys.exit(main(['check']))\n"
    )
    command = f"{shlex.join([sys.executable, '-c', script])} {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr in ("", "triojam: No space left on device\n")


@pytest.mark.parametrize(
    "words", ["check", "--help", "ask --help", "ask 127.0.0.1:1", "verify 127.0.0.1:1", "verify --rules"]
)
def test_a_closed_pipe_ends_a_command(words: str) -> None:
    """With a closed stdout (`| head -1`), a command ends as SIGPIPE would end it, and says nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [*COMMAND, *words.split()], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
@pytest.mark.parametrize("words", ["check", "--help", "--port x"])
def test_closed_or_full_streams_give_one_line_at_most(words: str, redirection: str) -> None:
    """With closed or full standard streams, a command ends with at most one line on stderr."""
    command = f"{shlex.join(COMMAND)} {words} {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert words != "--port x" or done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert done.returncode == (2 if words == "--port x" else 1 if "full" in redirection else 0)


async def test_server_runs_without_stdin_and_stdout() -> None:
    """A server without stdin and stdout serves, drains and exits with 0; no connection becomes its stdout."""
    async with serving(before=["sh", "-c", 'exec "$@" <&- >&-', "sh"]) as program:
        assert (await ask(program, b"TIME\r\n")).startswith(b"JAM ")
        program.process.terminate()
        assert await program.ended() == 0
