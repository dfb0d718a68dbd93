"""What a process makes of SIGTERM, SIGINT and SIGHUP."""

import os
import signal
import socket
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

REQUESTS = "triojam_requests_total"
JAM_BYTES = len("JAM hh:mm:ss\r\n")
# Long enough that a test which waits for it fails by its own deadline.
FOREVER = "600"
PATHS = ["--no-fast-lane", "--fast-lane"]


async def ask(client: trio.SocketStream) -> bytes:
    """Send one request and return its answer."""
    await client.send_all(b"TIME\r\n")
    return await receive_exactly(client, JAM_BYTES)


async def rest(client: trio.SocketStream) -> bytes:
    """Return what comes until the server closes, and close, too, so that it need not linger."""
    async with client:
        return await receive_all(client)


async def send_until_cut(client: trio.SocketStream, data: bytes) -> None:
    """Send what the server takes before it resets the connection."""
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(data)


async def stalled(program: Program) -> Scrape:
    """Wait until there are answers due that no buffer between the server and its client has room for."""
    with trio.fail_after(PATIENCE):
        seen = await program.scrape()
        while True:
            before, seen = seen, await program.scrape()
            if seen.unaccounted and seen.total(REQUESTS) == before.total(REQUESTS):
                return seen


def sent_and_lost(program: Program) -> tuple[int, int]:
    """Return, of a server that has stopped, the times delivered and those that were due but lost."""
    last = program.log[-1]
    assert (last["event"], last["connections"]) == ("stopped", 0)
    return last["responses"], last["requests"] - last["responses"] - last["rejected"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_idle_clients_are_closed(signum: signal.Signals) -> None:
    """A signal to stop ends idle connections in order, at once, and the exit status is 0."""
    async with serving("--grace", FOREVER) as program, await program.connect() as client:
        assert len(await ask(client)) == JAM_BYTES
        program.process.send_signal(signum)
        assert await rest(client) == b""
        assert await program.ended() == 0
    assert sent_and_lost(program) == (1, 0)


async def test_not_ready_before_it_refuses_and_refuses_before_it_ends() -> None:
    """First /readyz says draining while clients still get in; then they are refused; the web is last."""
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


async def test_a_line_that_is_never_finished_is_told_and_cut_at_the_grace_time() -> None:
    """A client in the middle of a line hears ERROR draining before the grace time is over."""
    async with serving("--grace", "0.5") as program, await program.connect() as client:
        await client.send_all(b"TI")
        program.process.terminate()
        assert (await rest(client)).startswith(b"ERROR draining: ")
        assert await program.ended() == 0
    last = program.log[-1]
    assert (last["requests"], last["responses"], last["rejected"]) == (1, 0, 1)


@pytest.mark.parametrize("path", PATHS)
async def test_a_blocked_send_is_cut_at_the_grace_time(path: str) -> None:
    """A client that does not take its answers holds up the end for the grace time and no longer."""
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
async def test_under_full_load_all_that_was_received_is_answered(path: str) -> None:
    """Requests that had been sent when the signal came are all answered, also on connections still queued."""
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


async def test_clients_that_come_and_go_notice_only_that_the_port_closes() -> None:
    """While clients connect, ask and close, a stop breaks no answer: each comes whole or not at all."""
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
async def test_a_second_signal_ends_it_at_once(second: signal.Signals, stage: str) -> None:
    """A second signal cuts the lame duck delay or the grace time; the exit status is 128 + its number."""
    lame_duck = FOREVER if stage == "draining: not ready" else "0"
    slow = serving("--grace", FOREVER, "--lame-duck", lame_duck)
    async with slow as program, await program.connect() as client:
        await client.send_all(b"TI")
        program.process.terminate()
        await program.logged(stage)
        program.process.send_signal(second)
        with trio.fail_after(5):
            assert await program.ended() == 128 + second


async def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    """A reload that fails is counted and logged with its reason in one line; the old settings stay."""
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


async def test_a_good_file_is_applied(tmp_path: Path) -> None:
    """A reload applies timeouts, limits, log level and zone; what it cannot apply, it names."""
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
            assert entry["need_restart"] == [
                "log_format"
            ]  # the port is a flag's, which stands above the file
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


async def test_a_reload_without_a_file_is_harmless() -> None:
    """SIGHUP to a server without a settings file changes nothing, and is counted as a success."""
    async with serving() as program:
        program.process.send_signal(signal.SIGHUP)
        entry = await program.logged("settings reloaded")
        assert (entry["changed"], entry["need_restart"]) == ([], [])


async def test_reloads_do_not_disturb_a_drain(tmp_path: Path) -> None:
    """SIGHUP while draining is a reload, not a second signal to stop."""
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
async def test_a_standstill_costs_nobody_the_answer(path: str) -> None:
    """What arrives while the process is stopped, beyond every deadline, is answered when it goes on."""
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
        await trio.sleep(stopped)  # the standstill is the fault
        program.process.send_signal(signal.SIGCONT)
        for client in clients:
            assert len(await receive_exactly(client, JAM_BYTES)) == JAM_BYTES
            await client.aclose()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("first", [b"", b"x\r\n"])
async def test_a_drain_answers_every_read_of_what_had_arrived(path: str, first: bytes) -> None:
    """All that was in the socket when the signal came is answered, however many reads that takes."""
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
async def test_no_load_keeps_it_from_stopping(path: str) -> None:
    """Neither hundreds of silent clients nor others that pipeline without end put off the end of a stop."""
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
            # Without an end to it, this would take as long as the clients go on.
            with trio.fail_after(grace + PATIENCE):
                await program.process.wait()
            nursery.cancel_scope.cancel()
        for client in silent:
            await client.aclose()
        assert await program.ended() == 0
    entries = {entry["event"]: datetime.fromisoformat(entry["timestamp"]) for entry in program.log}
    took = entries["stopped"] - entries["draining: not ready"]
    assert took.total_seconds() < grace + 1 + PATIENCE / 4  # a second, and what a busy machine adds to it


async def pipeline(client: trio.SocketStream, first: bytes) -> None:
    """Ask without end, and read all answers."""

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


def ignores_hangups(pid: int) -> bool:
    """Whether the process ignores SIGHUP (proc(5), SigIgn)."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) & 1 << (signal.SIGHUP - 1))


async def test_a_reload_that_comes_too_early_or_too_late_is_no_end() -> None:
    """SIGHUP neither ends a server that is starting nor one that is stopping, and its exit status stays 0."""
    async with launched([*COMMAND, *FREE_PORTS, "--log-format", "json"], {}) as process:
        await until(lambda: ignores_hangups(process.pid))

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
    """Return the process that a process has started, once it has."""
    children = trio.Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := await children.read_text("ascii")):
        await trio.lowlevel.checkpoint()
    return int(found)


async def test_a_stop_in_the_first_moments_of_process_1() -> None:
    """As the first process of a container it can be stopped while it is starting, like any other process."""
    unshare = require_program("unshare", "util-linux")
    if os.geteuid():
        cannot_run("only root makes a PID namespace")
    starting = [unshare, "--pid", "--fork", "--mount-proc", *COMMAND, *FREE_PORTS]
    async with launched(starting, {}) as process:
        child = await only_child(process.pid)
        await until(lambda: ignores_hangups(child))  # the first that it does; importing is still to come
        os.kill(child, signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            assert await process.wait() == 128 + signal.SIGTERM


def catches_interrupts(pid: int) -> bool:
    """Whether the process has a handler of its own for SIGINT (proc(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) & 1 << (signal.SIGINT - 1))


async def test_an_interrupt_while_starting_ends_it_quietly() -> None:
    """From the first line of ours on, Ctrl-C while everything is imported ends the process without a word."""
    async with launched([*COMMAND, *FREE_PORTS], {}) as process:
        await until(lambda: catches_interrupts(process.pid))  # Python itself does, as it starts
        await until(lambda: not catches_interrupts(process.pid))
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert await receive_all(process.stderr) == b""
        assert await process.wait() == -signal.SIGINT


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_after_the_drain_is_too_late(signum: signal.Signals) -> None:
    """Once the last line of the log says that it has stopped, a further signal changes nothing: status 0."""
    async with serving() as program:
        program.process.send_signal(signum)
        await program.logged("stopped")
        for _ in range(50):
            if program.process.poll() is None:
                program.process.send_signal(signum)
        assert await program.ended() == 0
