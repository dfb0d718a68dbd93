"""The messages of a server to its supervisor, and when the server feeds its watchdog."""

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
from triojam.process.systemd import ServiceManager
from triojam.server import open_server
from triojam.serving.listeners import ClientListener

# The time of the watchdog: a third of it is longer than the pauses of a busy machine.
WATCHDOG = 0.6
MICROSECONDS = str(int(WATCHDOG * 1e6))
ZEROS = "0 requests, 0 responses, 0 rejected, 0 send_errors, 0 connections"


@asynccontextmanager
async def watched(tmp_path: Path, *words: str) -> AsyncIterator[tuple[Told, Program]]:
    """Run a server under a supervisor with a watchdog: (its messages, the server)."""
    with Told.at(tmp_path / "notify") as told:
        async with serving(*words, NOTIFY_SOCKET=told.address, WATCHDOG_USEC=MICROSECONDS) as program:
            yield told, program


async def test_messages_come_in_order(tmp_path: Path) -> None:
    """The messages: ready, totals, begin and end of each reload, with its failure, and stopping."""
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


async def test_a_stopping_server_sends_no_other_message(tmp_path: Path) -> None:
    """During the drain, the server does not feed the watchdog, and a reload sends no message."""
    async with (
        watched(tmp_path, "--grace", "600") as (told, program),
        await program.connect() as client,
    ):
        await told.until("WATCHDOG")
        await client.send_all(b"TI")
        program.process.terminate()
        await told.until("STOPPING")
        await program.logged("draining: no new clients")
        program.process.send_signal(signal.SIGHUP)
        await program.logged("settings reloaded")
        await trio.sleep(WATCHDOG)  # there is no event for a message that does not come
        assert told.nothing_more()
        await client.send_all(b"ME\r\n")
        assert (await receive_all(client)).startswith(b"JAM ")
        await client.aclose()
        assert await program.ended() == 0
    assert not [entry for entry in program.log if "no answer from itself" in entry["event"]]


@pytest.mark.parametrize("lane", ["--fast-lane", "--no-fast-lane"])
async def test_a_full_server_feeds_its_watchdog(lane: str, tmp_path: Path) -> None:
    """At the connection limit, the server admits its own probe, which no client notices."""
    async with watched(tmp_path, lane, "--max-connections", "1") as (told, program):
        async with await program.connect() as client:
            for _ in range(4):
                await told.until("WATCHDOG")
                await client.send_all(b"TIME\r\n")
                assert (await receive_exactly(client, 14)).startswith(b"JAM ")
            async with await program.connect() as other:
                assert (await receive_all(other)).startswith(b"ERROR busy: ")
        seen = await program.scrape()
        assert seen.total("triojam_responses_total") == 4
        assert seen.total("triojam_self_checks_total", result="success") >= 4


@pytest.mark.parametrize("lane", ["--fast-lane", "--no-fast-lane"])
@pytest.mark.parametrize("limit", [("--deny", "127.0.0.0/8"), ("--rate-per-source", "0.001")])
async def test_limits_do_not_apply_to_the_servers_own_probe(
    lane: str, limit: tuple[str, str], tmp_path: Path
) -> None:
    """A server that denies its own machine, or limits its rate, feeds its watchdog."""
    async with watched(tmp_path, lane, *limit) as (told, program):
        for _ in range(4):
            await told.until("WATCHDOG")
        assert (await program.scrape()).total("triojam_rejected_total") == 0


@pytest.mark.parametrize("lane", ["--fast-lane", "--no-fast-lane"])
async def test_a_process_that_hangs_does_not_feed_its_watchdog(lane: str, tmp_path: Path) -> None:
    """While the process stands still, it does not feed the watchdog; afterwards it does. It had no client."""
    async with watched(tmp_path, lane) as (told, program):
        await told.until("WATCHDOG")
        program.process.send_signal(signal.SIGSTOP)
        await until(lambda: Path(f"/proc/{program.process.pid}/stat").read_text().split()[2] == "T")
        told.forget()
        await trio.sleep(WATCHDOG)  # there is no event for a message that does not come
        assert told.nothing_more()
        program.process.send_signal(signal.SIGCONT)
        await told.until("WATCHDOG")
        seen = await program.scrape()
        assert seen.total("triojam_connections_total") == seen.total("triojam_requests_total") == 0


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


async def test_a_server_that_does_not_accept_does_not_feed_its_watchdog(tmp_path: Path) -> None:
    """A server whose loop runs, but whose lane does not accept, does not feed; the log has the reason."""
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


async def test_a_server_whose_port_is_gone_does_not_feed_its_watchdog(tmp_path: Path) -> None:
    """A server whose socket no longer listens does not feed its watchdog."""
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
async def test_a_wrong_watchdog_time_is_an_error(micros: str) -> None:
    """A wrong time gives one line that names the variable, and exit status 2."""
    ended = await trio.run_process(
        [*COMMAND, *FREE_PORTS],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(NOTIFY_SOCKET="/nowhere", WATCHDOG_USEC=micros),
    )
    assert ended.returncode == 2
    told = ended.stderr.decode()
    assert told.startswith(f"triojam: invalid value {micros!r}"[:400])  # a long value is shortened
    assert " for WATCHDOG_USEC: expected microseconds" in told
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
async def test_only_a_watchdog_for_this_process_is_fed(
    variables: dict[str, str], *, fed: bool, tmp_path: Path
) -> None:
    """Only a watchdog for this process is fed; the variables are removed from the environment."""
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
async def test_a_missing_supervisor_is_not_an_error(address: str) -> None:
    """Messages to an address without a supervisor are dropped."""
    supervisor = ServiceManager(address)
    supervisor.ready()
    supervisor.stopping()


async def test_a_supervisor_that_does_not_read_does_not_block(tmp_path: Path) -> None:
    """If the queue of the supervisor is full, messages are lost."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        supervisor = ServiceManager(str(path))
        for _ in range(2000):  # more than any queue has room for (unix(7), max_dgram_qlen)
            supervisor.ready()


async def test_an_address_may_be_in_the_abstract_namespace() -> None:
    """An address that begins with @ is in the abstract namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0triojam-test")
        sock.settimeout(PATIENCE)
        ServiceManager("@triojam-test").ready()
        assert sock.recv(100) == b"READY=1"
