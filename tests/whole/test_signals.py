"""A whole process with SIGTERM, SIGINT and SIGHUP."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import trio

from tests.helpers.program import COMMAND, FREE_PORTS, Program, launched, serving
from tests.helpers.requirements import cannot_run, require_program
from tests.helpers.scrape import Scrape, fetch
from tests.helpers.servers import PATIENCE, receive_all, receive_exactly, until
from tests.helpers.sockets import JAM_BYTES

REQUESTS = "triojam_requests_total"
# A test that waits for this fails by its own deadline.
FOREVER = "600"
PATHS = ["--no-fast-lane", "--fast-lane"]


async def ask(client: trio.SocketStream) -> bytes:
    """Send one request and return its answer."""
    await client.send_all(b"TIME\r\n")
    return await receive_exactly(client, JAM_BYTES)


async def rest(client: trio.SocketStream) -> bytes:
    """Receive until the server closes, and close too, so that the server does not linger."""
    async with client:
        return await receive_all(client)


async def send_until_cut(client: trio.SocketStream, data: bytes) -> None:
    """Send until the server resets the connection."""
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(data)


async def stalled(program: Program) -> Scrape:
    """Wait until the buffers between server and client are full and requests wait for their answers."""
    with trio.fail_after(PATIENCE):
        seen = await program.scrape()
        while True:
            before, seen = seen, await program.scrape()
            if seen.unaccounted and seen.total(REQUESTS) == before.total(REQUESTS):
                return seen


def sent_and_lost(program: Program) -> tuple[int, int]:
    """Return how many answers a stopped server has delivered, and how many it has lost."""
    last = program.log[-1]
    assert (last["event"], last["connections"]) == ("stopped", 0)
    return last["responses"], last["requests"] - last["responses"] - last["rejected"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_signal_closes_idle_clients(signum: signal.Signals) -> None:
    """A signal to stop closes idle connections orderly and at once; the exit status is 0."""
    async with serving("--grace", FOREVER) as program, await program.connect() as client:
        assert len(await ask(client)) == JAM_BYTES
        program.process.send_signal(signum)
        assert await rest(client) == b""
        assert await program.ended() == 0
    assert sent_and_lost(program) == (1, 0)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM])
async def test_other_signals_keep_their_default_action(signum: signal.Signals) -> None:
    """A signal that triojam does not use ends the process at once, as the system's default is."""
    async with serving("--grace", FOREVER) as program, await program.connect() as client:
        assert len(await ask(client)) == JAM_BYTES
        program.process.send_signal(signum)
        assert await program.ended() == -signum
    assert [entry["event"] for entry in program.log] == ["serving"]


async def test_not_ready_before_it_refuses_and_refuses_before_it_ends() -> None:
    """First /readyz says draining, then clients are refused, and the web listener ends last."""
    async with serving("--lame-duck", "1", "--grace", FOREVER) as program, await program.connect() as client:
        await client.send_all(b"TI")
        program.process.terminate()
        await program.logged("draining: not ready")
        unready = await fetch(program.web, "/readyz")
        assert (unready.status, unready.text) == (503, "not ready: draining\n")
        assert (await fetch(program.web, "/healthz")).status == 200
        async with await program.connect() as late:
            assert len(await ask(late)) == JAM_BYTES
        await program.logged("draining: no new clients")
        with pytest.raises(OSError, match="connect"):
            await program.connect()
        assert (await program.scrape()).total("triojam_draining") == 1
        await client.send_all(b"ME\r\n")
        assert (await rest(client)).startswith(b"JAM ")
        assert await program.ended() == 0
    assert sent_and_lost(program) == (2, 0)


async def test_unfinished_line_gets_an_error_at_the_grace_time() -> None:
    """A client within a line gets ERROR draining before the grace time is over."""
    async with serving("--grace", "0.5") as program, await program.connect() as client:
        await client.send_all(b"TI")
        program.process.terminate()
        assert (await rest(client)).startswith(b"ERROR draining: ")
        assert await program.ended() == 0
    last = program.log[-1]
    assert (last["requests"], last["responses"], last["rejected"]) == (1, 0, 1)


@pytest.mark.parametrize("path", PATHS)
async def test_blocked_send_ends_at_the_grace_time(path: str) -> None:
    """A client that reads no answers delays the end by the grace time at most."""
    patient = serving(path, "--grace", "0.5", "--send-timeout", FOREVER)
    async with patient as program, await program.connect() as client, trio.open_nursery() as nursery:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        nursery.start_soon(send_until_cut, client, b"TIME\r\n" * 5_000_000)
        before = await stalled(program)
        program.process.terminate()
        assert await program.ended() == 0
    delivered, lost = sent_and_lost(program)
    assert delivered >= before.total("triojam_responses_total")
    assert lost > 0


@pytest.mark.parametrize("path", PATHS)
async def test_drain_under_full_load_answers_all_requests(path: str) -> None:
    """All requests sent before the signal are answered, also on connections in the accept queue."""
    clients, requests = 50, 500
    answered = []

    async def read(client: trio.SocketStream) -> None:
        answered.append(await rest(client))

    async with serving(path, "--grace", FOREVER) as program:
        streams = [await program.connect() for _ in range(clients)]
        for stream in streams:
            await stream.send_all(b"TIME\r\n" * requests)
        streams += [await program.connect() for _ in range(clients)]
        for stream in streams[clients:]:
            await stream.send_all(b"TIME\r\n")
        program.process.terminate()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(read, stream)
        assert await program.ended() == 0
    assert sorted(each.count(b"JAM ") for each in answered) == [1] * clients + [requests] * clients
    assert sent_and_lost(program) == (clients * requests + clients, 0)


async def test_short_connections_break_no_answer_during_a_stop() -> None:
    """While clients connect, ask and close, each answer comes whole or not at all."""
    whole, stopping = 0, False

    async def come_and_go(program: Program) -> None:
        nonlocal whole
        while True:
            try:
                async with await program.connect() as client:
                    answer = await ask(client)
            except (OSError, trio.BrokenResourceError):
                assert stopping
                return
            assert len(answer) in ((0, JAM_BYTES) if stopping else (JAM_BYTES,))
            whole += len(answer) == JAM_BYTES

    async with serving("--grace", FOREVER, "--lame-duck", "0.2") as program:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(come_and_go, program)
            with trio.fail_after(PATIENCE):
                while whole < 500:  # noqa: ASYNC110  # a count has no event
                    await trio.sleep(0.001)
            stopping = True
            program.process.terminate()
        assert await program.ended() == 0
    assert sent_and_lost(program) == (whole, 0)


@pytest.mark.parametrize(
    ("second", "stage"),
    [(signal.SIGTERM, "draining: not ready"), (signal.SIGINT, "draining: no new clients")],
)
async def test_second_signal_ends_the_process_at_once(second: signal.Signals, stage: str) -> None:
    """A second signal ends the lame duck delay or the grace time; the exit status is 128 + its number."""
    lame_duck = FOREVER if stage == "draining: not ready" else "0"
    slow = serving("--grace", FOREVER, "--lame-duck", lame_duck)
    async with slow as program, await program.connect() as client:
        await client.send_all(b"TI")
        program.process.terminate()
        await program.logged(stage)
        program.process.send_signal(second)
        with trio.fail_after(5):
            assert await program.ended() == 128 + second


async def test_reload_of_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    """A failed reload is counted and logged with its reason in one line; the old settings stay."""
    file = tmp_path / "triojam.toml"
    file.write_text("max_connections = 7\n")
    async with serving("--config", str(file)) as program:
        for failures, mistake in enumerate(("grace = -1", "grace = ", "graze = 5", "missing"), 1):
            if mistake == "missing":
                file.unlink()
            else:
                file.write_text(f"max_connections = 8\n{mistake}\n")
            program.process.send_signal(signal.SIGHUP)
            entry = await program.logged("settings not reloaded, the old ones stay")
            assert entry["level"] == "error"
            assert str(file) in entry["reason"]
            assert "\n" not in entry["reason"]
            seen = await program.scrape()
            assert seen.total("triojam_connections_limit") == 7
            assert seen.total("triojam_config_reloads_total", result="failure") == failures
            assert seen.total("triojam_config_reloads_total", result="success") == 0
        assert (await fetch(program.web, "/readyz")).status == 200


async def test_reload_applies_a_good_file(tmp_path: Path) -> None:
    """A reload applies timeouts, limits, log level and zone, and names the settings that need a restart."""
    file = tmp_path / "triojam.toml"
    file.write_text('timezone = "UTC"\nmax_line_bytes = 512\n')
    async with serving("--config", str(file)) as program:
        async with await program.connect() as old:
            await ask(old)
            file.write_text(
                'timezone = "Etc/GMT+12"\nmax_connections = 7\nmax_line_bytes = 6\nidle_timeout = 0.1\n'
                'log_level = "debug"\nlog_format = "console"\nport = 1\n'
            )
            program.process.send_signal(signal.SIGHUP)
            entry = await program.logged("settings reloaded")
            assert set(entry["changed"]) == {
                "timezone", "max_connections", "max_line_bytes", "idle_timeout", "log_level",
            }  # fmt: skip
            assert entry["need_restart"] == ["log_format"]  # the flag for the port overrides the file
            before = datetime.now(ZoneInfo("Etc/GMT+12"))
            answer = await ask(old)
            assert answer[4:6].decode() in (f"{before:%H}", f"{datetime.now(ZoneInfo('Etc/GMT+12')):%H}")
            assert await rest(old) == b""
        async with await program.connect() as new:
            await new.send_all(b"TIME!!\r\n")
            assert (await rest(new)).startswith(b"ERROR too_long: ")
        await program.logged("connection ended", level="debug")
        seen = await program.scrape()
        assert seen.total("triojam_connections_limit") == 7
        assert seen.total("triojam_config_reloads_total", result="success") == 1


async def test_reload_without_a_file_changes_nothing() -> None:
    """SIGHUP to a server without a settings file changes nothing and is a success."""
    async with serving() as program:
        program.process.send_signal(signal.SIGHUP)
        entry = await program.logged("settings reloaded")
        assert (entry["changed"], entry["need_restart"]) == ([], [])


async def test_reload_does_not_disturb_a_drain(tmp_path: Path) -> None:
    """SIGHUP during a drain is a reload, not a second signal to stop."""
    async with serving("--grace", FOREVER) as program, await program.connect() as client:
        await client.send_all(b"TI")
        program.process.terminate()
        await program.logged("draining: no new clients")
        program.process.send_signal(signal.SIGHUP)
        await program.logged("settings reloaded")
        await client.send_all(b"ME\r\n")
        assert (await rest(client)).startswith(b"JAM ")
        assert await program.ended() == 0


@pytest.mark.parametrize("path", PATHS)
async def test_stopped_process_answers_everything_afterwards(path: str) -> None:
    """Requests that arrive while the process is stopped beyond all deadlines are answered after SIGCONT."""
    stopped = 1.5
    async with serving(path, "--idle-timeout", "1", "--line-timeout", "1") as program:
        clients = [await program.connect() for _ in range(60)]
        for client in clients[::3]:
            await client.send_all(b"TI")
        for client in clients[1::3]:
            assert len(await ask(client)) == JAM_BYTES
        program.process.send_signal(signal.SIGSTOP)
        for number, client in enumerate(clients):
            await client.send_all(b"ME\r\n" if number % 3 == 0 else b"TIME\r\n")
        await trio.sleep(stopped)  # longer than both timeouts
        program.process.send_signal(signal.SIGCONT)
        for client in clients:
            assert len(await receive_exactly(client, JAM_BYTES)) == JAM_BYTES
            await client.aclose()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("first", [b"", b"x\r\n"])
async def test_drain_answers_everything_that_has_arrived(path: str, first: bytes) -> None:
    """All requests in the socket at the signal are answered, even if that takes several reads."""
    requests = 3731
    async with serving(path, "--grace", FOREVER) as program:
        clients = [await program.connect() for _ in range(8)]
        for client in clients:
            assert len(await ask(client)) == JAM_BYTES
        program.process.send_signal(signal.SIGSTOP)
        for client in clients:
            await client.send_all(first + b"TIME\r\n" * requests)
        program.process.terminate()
        program.process.send_signal(signal.SIGCONT)
        for client in clients:
            assert (await rest(client)).count(b"JAM ") == requests
        assert await program.ended() == 0
    assert sent_and_lost(program) == (8 * requests + 8, 0)


@pytest.mark.parametrize("path", PATHS)
async def test_load_does_not_delay_the_end(path: str) -> None:
    """Hundreds of silent clients and others that pipeline without end do not delay the end of the process."""
    grace = 1.0
    async with serving(path, "--grace", str(grace), "--lame-duck", "0") as program:
        silent = [await program.connect() for _ in range(500)]
        async with trio.open_nursery() as nursery:
            for number in range(50):
                client = await program.connect()
                nursery.start_soon(pipeline, client, b"x\r\n" * (number % 2))
            with trio.fail_after(PATIENCE):
                while (await program.scrape()).total(REQUESTS) < 50_000:
                    pass
            program.process.terminate()
            # Without a limit, the drain would last as long as the clients send.
            with trio.fail_after(grace + PATIENCE):
                await program.process.wait()
            nursery.cancel_scope.cancel()
        for client in silent:
            await client.aclose()
        assert await program.ended() == 0
    entries = {entry["event"]: datetime.fromisoformat(entry["timestamp"]) for entry in program.log}
    took = entries["stopped"] - entries["draining: not ready"]
    assert took.total_seconds() < grace + 1 + PATIENCE / 4  # one second, and the delays of a busy machine


async def pipeline(client: trio.SocketStream, first: bytes) -> None:
    """Send requests without end, and read all answers."""

    async def read() -> None:
        with suppress(trio.BrokenResourceError):
            while await client.receive_some(65536):
                pass

    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with suppress(trio.BrokenResourceError):
            await client.send_all(first)
            while True:
                await client.send_all(b"TIME\r\n" * 500)


def in_mask(pid: int, name: str, signum: signal.Signals) -> bool:
    """Whether a signal is in a mask of a process: `SigIgn` or `SigCgt` (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:"))
    return bool(int(mask, 16) & 1 << (signum - 1))


def survives_hangups(pid: int) -> bool:
    """Whether the process ignores or handles SIGHUP, as it does from its first action on."""
    return any(in_mask(pid, name, signal.SIGHUP) for name in ("SigIgn", "SigCgt"))


async def test_early_and_late_hangups_do_not_end_the_process() -> None:
    """SIGHUP ends neither a starting nor a stopping server; the exit status is 0."""
    async with launched([*COMMAND, *FREE_PORTS, "--log-format", "json"], {}) as process:
        await until(lambda: survives_hangups(process.pid))

        async def hang_up() -> None:
            while process.poll() is None:
                process.send_signal(signal.SIGHUP)
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up)
            program = Program(process)
            await program.logged("serving")
            await program.logged("settings reloaded")
            process.terminate()
            assert await program.ended() == 0


async def only_child(pid: int) -> int:
    """Wait for the child of a process, and return it."""
    children = trio.Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := await children.read_text("ascii")):
        await trio.lowlevel.checkpoint()
    return int(found)


# Stops in the first import of the command line, until a signal comes.
STUCK_IN_IMPORTS = """
import sys, time
class Stuck:
    def find_spec(self, name, path=None, target=None):
        if name == "triojam.cli.main":
            print("importing", flush=True)
            time.sleep(600)
sys.meta_path.insert(0, Stuck())
from triojam.__main__ import main
main()
"""


async def test_process_1_can_be_stopped_while_it_starts() -> None:
    """The first process of a container can be stopped while it starts, like any other process."""
    unshare = require_program("unshare", "util-linux")
    if os.geteuid():
        cannot_run("only root makes a PID namespace")
    starting = [unshare, "--pid", "--fork", "--mount-proc", sys.executable, "-c", STUCK_IN_IMPORTS]
    async with launched(starting, {}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with trio.fail_after(PATIENCE):
            assert (await process.stdout.receive_some()).startswith(b"importing")
            os.kill(await only_child(process.pid), signal.SIGTERM)
            assert await process.wait() == 128 + signal.SIGTERM


async def test_interrupt_during_the_imports_prints_nothing() -> None:
    """Ctrl-C during the imports ends the process and prints nothing."""
    command = [sys.executable, "-c", STUCK_IN_IMPORTS]
    async with launched(command, {}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        with trio.fail_after(PATIENCE):
            assert (await process.stdout.receive_some()).startswith(b"importing")
            process.send_signal(signal.SIGINT)
            assert await receive_all(process.stderr) == b""
            assert await process.wait() == -signal.SIGINT


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_signal_after_the_last_log_line_changes_nothing(signum: signal.Signals) -> None:
    """A signal after the log line `stopped` changes nothing: the exit status is 0."""
    async with serving() as program:
        program.process.send_signal(signum)
        await program.logged("stopped")
        for _ in range(50):
            if program.process.poll() is None:
                program.process.send_signal(signum)
        assert await program.ended() == 0
