"""What whoever supervises a server is told, and what its watchdog is fed for."""

import math
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.helpers.program import COMMAND, FREE_PORTS, Program, environment, serving
from tests.helpers.servers import PATIENCE, Events, receive_all, receive_exactly, settings_for_test, until
from tests.helpers.service_manager import Told
from triojam import Server
from triojam.process import self_check
from triojam.process.self_check import ask_itself
from triojam.process.systemd import ServiceManager
from triojam.server import open_server
from triojam.serving.listeners import ClientListener

# How long a watchdog waits here: three feeds in it, so it is no less than a busy machine's hiccups.
WATCHDOG = 0.6
MICROSECONDS = str(int(WATCHDOG * 1e6))
ZEROS = "0 requests, 0 responses, 0 rejected, 0 send_errors, 0 connections"


async def test_what_is_told_and_in_what_order(tmp_path: Path) -> None:
    """Ready, totals, begin and end of each reload, also of one that fails, as the status says; the end."""
    file = tmp_path / "triojam.toml"
    file.write_text("")
    with Told.at(tmp_path / "notify") as told:
        async with serving("--config", str(file), NOTIFY_SOCKET=told.address) as program:
            assert await told.next() == {"READY": "1"}
            assert await told.next() == {"STATUS": ZEROS}
            for text, trouble in (("", ""), ("port = 'x'\n", "; settings not reloaded: "), ("", "")):
                file.write_text(text)
                program.process.send_signal(signal.SIGHUP)
                began = await told.next()
                assert began["RELOADING"] == "1"
                assert int(began["MONOTONIC_USEC"]) > 0
                over = await told.next()
                assert over["READY"] == "1"
                assert over["STATUS"].startswith(ZEROS + trouble)
                assert (over["STATUS"] == ZEROS) is (trouble == "")
            program.process.terminate()
            assert await told.next() == {"STOPPING": "1"}
            assert await program.ended() == 0
        assert told.nothing_more()


async def test_once_it_stops_nothing_else_is_told(tmp_path: Path) -> None:
    """A reload during the drain is not told, or it would seem to be ready again; nor is the watchdog fed."""
    with Told.at(tmp_path / "notify") as told:
        variables = {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": MICROSECONDS}
        async with serving("--grace", "600", **variables) as program, await program.connect() as client:
            await told.until("WATCHDOG")
            await client.send_all(b"TI")
            program.process.terminate()
            await told.until("STOPPING")
            await program.logged("draining: no new clients")
            program.process.send_signal(signal.SIGHUP)
            await program.logged("settings reloaded")
            await trio.sleep(WATCHDOG)  # that nothing comes has nothing to await
            assert told.nothing_more()
            await client.send_all(b"ME\r\n")
            assert (await receive_all(client)).startswith(b"JAM ")
            await client.aclose()
            assert await program.ended() == 0
        assert not [entry for entry in program.log if "no answer from itself" in entry["event"]]


async def admitted(program: Program) -> trio.SocketStream:
    """Open the one connection there may be: at that moment the server may be asking itself."""
    while True:
        client = await program.connect()
        await client.send_all(b"TIME\r\n")
        if (await receive_exactly(client, 4)) == b"JAM ":
            return client
        await client.aclose()


@pytest.mark.parametrize("lane", ["--fast-lane", "--no-fast-lane"])
async def test_a_full_server_is_fed(lane: str, tmp_path: Path) -> None:
    """At the cap, where every other client hears `busy`, the server still lets itself in."""
    with Told.at(tmp_path / "notify") as told:
        variables = {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": MICROSECONDS}
        async with serving(lane, "--max-connections", "1", **variables) as program:
            async with await admitted(program):
                for _ in range(4):
                    await told.until("WATCHDOG")
                async with await program.connect() as other:
                    assert (await receive_all(other)).startswith(b"ERROR busy: ")
            seen = await program.scrape()
            assert seen.total("triojam_responses_total") >= 4


@pytest.mark.parametrize("lane", ["--fast-lane", "--no-fast-lane"])
@pytest.mark.parametrize("limit", [("--deny", "127.0.0.0/8"), ("--rate-per-source", "0.001")])
async def test_limits_are_not_for_the_server_itself(
    lane: str, limit: tuple[str, str], tmp_path: Path
) -> None:
    """A server that lets nobody of its own machine in, or only once, is fed all the same."""
    with Told.at(tmp_path / "notify") as told:
        variables = {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": MICROSECONDS}
        async with serving(lane, *limit, **variables) as program:
            for _ in range(4):
                await told.until("WATCHDOG")
            assert (await program.scrape()).total("triojam_rejected_total") == 0


async def test_a_process_that_hangs_is_not_fed(tmp_path: Path) -> None:
    """While the process stands still nothing feeds its watchdog; once it goes on, it is fed again."""
    with Told.at(tmp_path / "notify") as told:
        variables = {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": MICROSECONDS}
        async with serving(**variables) as program:
            await told.until("WATCHDOG")
            program.process.send_signal(signal.SIGSTOP)
            await until(lambda: Path(f"/proc/{program.process.pid}/stat").read_text().split()[2] == "T")
            told.forget()
            await trio.sleep(WATCHDOG)  # that nothing comes has nothing to await
            assert told.nothing_more()
            program.process.send_signal(signal.SIGCONT)
            await told.until("WATCHDOG")


@asynccontextmanager
async def supervised(address: str, events: Events, *, fast_lane: bool) -> AsyncIterator[Server]:
    """Run a server in this process, under a supervisor at `address`."""
    server = await open_server(
        settings_for_test(fast_lane=fast_lane),
        make_logger=events.make_logger,
        log_messages_dropped=int,
        manager=ServiceManager(address, WATCHDOG),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


async def test_a_server_that_does_not_accept_is_not_fed(tmp_path: Path) -> None:
    """A loop that turns is not enough: a lane that accepts nobody is not fed, and the log says why."""
    events = Events()
    with Told.at(tmp_path / "notify") as told:
        async with supervised(told.address, events, fast_lane=True) as server:
            await told.until("WATCHDOG")
            assert server._lane is not None
            server._lane._queues.pause(math.inf)
            await until(lambda: bool(events.named("no answer from itself, the watchdog is not fed")))
            told.forget()
            await until(lambda: len(events.named("no answer from itself, the watchdog is not fed")) > 2)
            assert told.nothing_more()
            server._lane._queues.resume()
            await told.until("WATCHDOG")


async def test_a_server_whose_port_is_gone_is_not_fed(tmp_path: Path) -> None:
    """With a socket that has ceased to listen the watchdog is not fed."""
    events = Events()
    with Told.at(tmp_path / "notify") as told:
        async with supervised(told.address, events, fast_lane=False) as server:
            await told.until("WATCHDOG")
            (listener,) = server._listeners
            assert isinstance(listener, ClientListener)
            listener.socket.shutdown(socket.SHUT_RDWR)
            await until(lambda: len(events.named("no answer from itself, the watchdog is not fed")) > 2)
            told.forget()
            await until(lambda: len(events.named("no answer from itself, the watchdog is not fed")) > 4)
            assert told.nothing_more()


@pytest.mark.parametrize("micros", ["soon", "1", "0", "-5", "9" * 400, "9" * 5000, "\u0661"])
async def test_a_watchdog_that_cannot_be_fed_is_refused(micros: str) -> None:
    """A time that makes no sense gives one line that names the variable, and exit status 2."""
    ended = await trio.run_process(
        [*COMMAND, *FREE_PORTS],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(NOTIFY_SOCKET="/nowhere", WATCHDOG_USEC=micros),
    )
    assert ended.returncode == 2
    told = ended.stderr.decode()
    assert told.startswith(f"triojam: invalid value {micros!r} for WATCHDOG_USEC: expected microseconds")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "fed"),
    [
        ({"WATCHDOG_USEC": MICROSECONDS}, True),
        ({"WATCHDOG_USEC": MICROSECONDS, "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": MICROSECONDS, "WATCHDOG_PID": "1"}, False),
        ({}, False),
    ],
)
async def test_whose_watchdog_it_is(variables: dict[str, str], *, fed: bool, tmp_path: Path) -> None:
    """Only a watchdog meant for this process is fed; the variables are taken out of the environment."""
    asked = trio.Event()

    async def ask(within: float) -> bool:
        assert within == pytest.approx(WATCHDOG / 3)
        asked.set()
        return True

    with Told.at(tmp_path / "notify") as told:
        environ = variables | {"NOTIFY_SOCKET": told.address, "HOME": "/"}
        supervisor = ServiceManager.from_environment(environ, os.getpid())
        assert environ == {"HOME": "/"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.attend, ask, lambda: {"requests": 1})
            assert await told.next() == {"STATUS": "1 requests"} or fed
            await trio.testing.wait_all_tasks_blocked()
            assert asked.is_set() is fed
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@triojam-nobody", "vsock:2:1", "/" + "x" * 200])
async def test_nobody_listens(address: str) -> None:
    """A supervisor that is not there, or speaks otherwise, is no reason to fail."""
    supervisor = ServiceManager(address)
    supervisor.ready()
    supervisor.stopping()


async def test_a_supervisor_that_does_not_read(tmp_path: Path) -> None:
    """One whose queue is full does not hold up the service; a message is lost."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        supervisor = ServiceManager(str(path))
        for _ in range(2000):  # more than any queue has room for (unix(7), max_dgram_qlen)
            supervisor.ready()


async def test_an_address_in_the_abstract_namespace() -> None:
    """An address that begins with @ has no file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0triojam-test")
        sock.settimeout(PATIENCE)
        ServiceManager("@triojam-test").ready()
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"JAM 12:34:56\r\n", None),
        (b"ERROR busy: later\r\n", "not the time: b'ERROR busy: la'"),
        (b"", "b''"),
    ],
)
async def test_what_counts_as_an_answer(answer: bytes, failure: str | None, nursery: trio.Nursery) -> None:
    """Only the time does; while it asks, and no longer, the address it asks from is known."""
    own: set[tuple[str, int]] = set()

    async def serve(stream: trio.SocketStream) -> None:
        assert stream.socket.getpeername() in own
        async with stream:
            assert await receive_exactly(stream, 6) == b"TIME\r\n"
            await stream.send_all(answer)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    found = await ask_itself([listener.socket.getsockname()], own)
    assert found is None if failure is None else found is not None and found.endswith(failure)
    assert own == set()
    nursery.cancel_scope.cancel()


async def test_ipv6_that_is_switched_off(monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> None:
    """Where a machine has no ::1, a socket on all addresses is asked over IPv4."""
    monkeypatch.setitem(self_check._LOOPBACK, "::", ["2001:db8::1", "127.0.0.1"])
    server = await open_server(
        settings_for_test(), make_logger=Events().make_logger, log_messages_dropped=int
    )
    await nursery.start(server.run)
    assert await ask_itself([("::", server.addresses[0][1])], set()) is None
    nursery.cancel_scope.cancel()
