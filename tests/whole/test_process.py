"""The whole process: how it starts, what it may open, and what it does with its log."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import trio

from tests.helpers.program import COMMAND, FREE_PORTS, Program, launched, serving
from tests.helpers.scrape import fetch
from tests.helpers.servers import PATIENCE, receive_all, receive_exactly

JAM_BYTES = len("JAM hh:mm:ss\r\n")


async def ask(program: Program, requests: bytes) -> bytes:
    """Send requests on a new connection, end the sending side, and return all that comes back."""
    async with await program.connect() as client, trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_all(requests)
            await client.send_eof()

        nursery.start_soon(send)  # beside, for the server stops reading while its answers are not read
        return await receive_all(client)


async def test_it_serves_and_says_where() -> None:
    """The line about serving names both addresses; the time is to be had at the one, health at the other."""
    async with serving() as program:
        answer = await ask(program, b"TIME\r\n")
        assert answer.startswith(b"JAM ")
        assert len(answer) == JAM_BYTES
        assert (await fetch(program.web, "/readyz")).text == "ready\n"


async def test_a_log_on_a_pipe_is_one_json_object_a_line() -> None:
    """Each stage from start to stop is one JSON object with its event, level and time in UTC."""
    async with serving() as program:
        await ask(program, b"TIME\r\nHELLO\r\n")
        program.process.terminate()
        assert await program.ended() == 0
    assert [entry["event"] for entry in program.log] == [
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


async def text_on_terminal(*words: str) -> str:
    """Return what a server that starts and stops writes to a terminal."""
    master, slave = os.openpty()
    text = b""
    async with trio.lowlevel.FdStream(master) as terminal:
        try:
            command = [*COMMAND, *FREE_PORTS, *words]
            async with launched(command, {"TERM": "xterm"}, stderr=slave) as process:
                with trio.fail_after(PATIENCE):
                    while b"serving" not in text:
                        text += await terminal.receive_some()
                    process.terminate()
                    while b"stopped" not in text:
                        text += await terminal.receive_some()
                    assert await process.wait() == 0
        finally:
            os.close(slave)
    return text.decode()


async def test_a_log_on_a_terminal_is_for_people() -> None:
    """On a terminal the log is coloured text."""
    text = await text_on_terminal()
    assert "\x1b[" in text
    assert not any(line.startswith("{") for line in text.splitlines())


async def test_json_can_be_asked_for_on_a_terminal() -> None:
    """--log-format json stands above what the terminal would get."""
    lines = (await text_on_terminal("--log-format", "json")).splitlines()
    assert all(line.startswith("{") for line in lines)


async def test_console_on_a_pipe_has_no_escapes() -> None:
    """--log-format console on a pipe writes text without escape sequences, whatever a client has sent."""
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


async def test_a_stalled_reader_of_the_log_does_not_stall_serving() -> None:
    """Once nobody reads stderr, log lines are dropped and counted, and requests are answered as before."""
    async with serving("--log-level", "debug") as program:
        rounds = 4000  # a debug line each: more than pipe and queue hold
        answers = await ask(program, b"HELLO\r\nTIME\r\n" * rounds)
        assert answers.count(b"JAM ") == answers.count(b"ERROR bad_command") == rounds
        seen = await program.scrape()
        assert seen.total("triojam_log_messages_dropped_total") > 0
        assert seen.unaccounted == 0
        program.process.terminate()
        with trio.fail_after(PATIENCE):
            assert await program.process.wait() == 0


async def test_a_reader_of_the_log_that_goes_away_takes_nothing_with_it() -> None:
    """Once stderr has no reader (`| head -1`), lines are dropped and counted, and serving goes on."""
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


def limited(limits: str) -> list[str]:
    """Return the words that run a command under `ulimit`."""
    return ["sh", "-c", f'ulimit {limits} && exec "$@"', "sh"]


async def test_the_descriptor_limit_is_raised() -> None:
    """A soft limit below the hard one is raised to it, and the log says from where to where."""
    async with serving(before=limited("-S -n 1024 && ulimit -H -n 2048")) as program:
        entry = next(each for each in program.log if each["event"] == "file descriptors raised")
        assert (entry["raised_from"], entry["limit"]) == (1024, 2048)


async def test_connections_leave_room_among_the_descriptors() -> None:
    """Of 256 descriptors, 64 are kept: 192 clients are served, one more hears busy, metrics still answer."""
    async with serving("--idle-timeout", "0", before=limited("-n 256")) as program:
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


async def test_without_a_web_listener_none_of_its_libraries_is_imported() -> None:
    """With metrics_port none, Hypercorn and Starlette stay unread, and the log names no metrics address."""
    script = (
        "import sys; from triojam.cli.main import main\n"
        "status = main(['--host', '127.0.0.1', '--port', '0', '--metrics-port', 'none'])\n"
        "print(sorted({'hypercorn', 'starlette'} & set(sys.modules)))\n"
        "sys.exit(status)\n"
    )
    async with launched([sys.executable, "-c", script], {}, stdout=subprocess.PIPE) as process:
        program = Program(process)
        assert (await program.logged("serving"))["metrics"] == []
        process.terminate()
        assert await program.ended() == 0
        assert process.stdout is not None
        assert await receive_all(process.stdout) == b"[]\n"


@pytest.mark.parametrize("word", ["check", "--help"])
def test_a_closed_pipe_is_no_traceback(word: str) -> None:
    """A reader of stdout that has gone away (`| head -1`) gets no traceback on stderr instead."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run([*COMMAND, word], stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
@pytest.mark.parametrize("words", ["check", "--help", "--port x"])
def test_closed_or_full_standard_streams(words: str, redirection: str) -> None:
    """Whatever becomes of its standard streams, a command ends with at most one line, on stderr."""
    command = f"{shlex.join(COMMAND)} {words} {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert words != "--port x" or done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert done.returncode == (2 if words == "--port x" else 1 if "full" in redirection else 0)


async def test_closed_standard_streams_are_no_matter_to_the_service() -> None:
    """A server without stdin and stdout serves, drains and exits with 0; no client becomes its stdout."""
    async with serving(before=["sh", "-c", 'exec "$@" <&- >&-', "sh"]) as program:
        assert (await ask(program, b"TIME\r\n")).startswith(b"JAM ")
        program.process.terminate()
        assert await program.ended() == 0
