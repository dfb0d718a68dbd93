"""The server's own client: what it asks, and that no counter takes it for a client."""

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.helpers.program import COMMAND, environment, parse_address, serving
from tests.helpers.servers import (
    JAM,
    PATIENCE,
    Events,
    authority,
    certificate_file,
    open_tls,
    receive_exactly,
    settings_for_test,
    trusting,
    until,
)
from tests.helpers.service_manager import Told
from triojam import Server
from triojam.core.counters import Counters
from triojam.core.reasons import SelfCheck
from triojam.process import self_check
from triojam.process.self_check import MOST_WAITING, OwnClient
from triojam.process.systemd import Passed
from triojam.server import open_server
from triojam.serving import listeners
from triojam.serving.listeners import Accepted

# A third of it is the time between two checks.
WATCHDOG_MICROSECONDS = "300000"
LANES = pytest.mark.parametrize("fast_lane", [True, False], ids=["lane", "tasks"])


@asynccontextmanager
async def running(
    *, passed: Passed | None = None, events: Events | None = None, **changes: Any
) -> AsyncIterator[Server]:
    """Run a server in this process. passed: sockets that stand in for those of the settings."""
    server = await open_server(
        settings_for_test(**changes),
        make_logger=(Events() if events is None else events).make_logger,
        log_messages_dropped=int,
        passed=passed,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


def counted(counters: Counters) -> dict[str, Any]:
    """Return everything that a client can change in the counters."""
    names = set(Counters.__slots__) - {"connections_limit", "loop_lag", "ready", "self_checks"}
    values = {name: getattr(counters, name) for name in names}
    return {name: getattr(value, "counts", value) for name, value in values.items()}


NOTHING = counted(Counters())


async def assert_nothing_is_counted(counters: Counters) -> None:
    """Look at the counters in each turn of the scheduler, until cancelled."""
    while True:
        assert counted(counters) == NOTHING
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("answer", "result", "failure"),
    [
        (b"JAM 12:34:56\r\n", SelfCheck.SUCCESS, ""),
        (b"ERROR busy: later\r\n", SelfCheck.WRONG_ANSWER, "not the time: b'ERROR busy: la'"),
        (b"", SelfCheck.WRONG_ANSWER, "not the time: b''"),
    ],
)
async def test_only_the_time_is_an_answer_to_the_probe(
    answer: bytes, result: SelfCheck, failure: str, nursery: trio.Nursery
) -> None:
    """Any other answer is a failure; `own` has the probe's address only while it asks."""
    own: set[tuple[str, int]] = set()

    async def serve(stream: trio.SocketStream) -> None:
        assert stream.socket.getpeername() in own
        async with stream:
            assert await receive_exactly(stream, 6) == b"TIME\r\n"
            await stream.send_all(answer)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    address = listener.socket.getsockname()
    found = await OwnClient([address], own).ask(PATIENCE)
    assert found == (result, failure and f"127.0.0.1:{address[1]}: {failure}")
    assert own == set()
    nursery.cancel_scope.cancel()


async def test_the_probe_uses_ipv4_if_ipv6_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without ::1, a socket on all addresses is asked over IPv4, and knows its own client."""
    monkeypatch.setitem(self_check._LOOPBACK, "::", ["2001:db8::1", "127.0.0.1"])
    sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    async with running(passed={"time": [sock]}) as server:
        assert await server._answers_itself(PATIENCE)
        assert counted(server.counters) == NOTHING


async def test_a_port_that_is_closed_fails_the_check() -> None:
    """The reason is the kernel's, and `own` forgets the probe."""
    own: set[tuple[str, int]] = set()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host, port = unused.getsockname()
        found = await OwnClient([(host, port)], own).ask(PATIENCE)
    assert found == (SelfCheck.CONNECTION, f"{host}:{port}: Connection refused")
    assert own == set()


@LANES
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"host": "::1"},
        {"host": "::"},
        {"proxies": "127.0.0.0/8"},
        {"deny": "127.0.0.0/8", "connections_per_source": 1},
        {"rate_per_source": 0.001, "burst_per_source": 1},
    ],
    ids=str,
)
async def test_the_servers_requests_are_counted_apart(changes: dict[str, Any], *, fast_lane: bool) -> None:
    """No counter of clients changes at any moment, whatever the listener and the policy are."""
    async with running(fast_lane=fast_lane, **changes) as server, trio.open_nursery() as nursery:
        nursery.start_soon(assert_nothing_is_counted, server.counters)
        for _ in range(3):
            assert await server._answers_itself(PATIENCE)
        await until(lambda: server._service.own_counters.connections_open == 0)
        nursery.cancel_scope.cancel()
        assert server.counters.self_checks == dict.fromkeys(SelfCheck, 0) | {SelfCheck.SUCCESS: 3}
        own = server._service.own_counters
        assert own.connections == 3
        assert not any(own.handovers.values())
        assert server._service.admission.itself.connections == 0


@LANES
async def test_the_debug_log_has_clients_only(*, fast_lane: bool) -> None:
    """The server's own connection is no event, not even for debugging."""
    events = Events()
    async with running(events=events, fast_lane=fast_lane, log_level="debug") as server:
        at_start = len(events)
        assert await server._answers_itself(PATIENCE)
        await until(lambda: server._service.own_counters.connections_open == 0)
        assert len(events) == at_start


@LANES
async def test_a_check_beside_a_client_counts_the_client_only(*, fast_lane: bool) -> None:
    """Requests of a client are counted exactly while the server asks itself."""
    async with running(fast_lane=fast_lane) as server, trio.open_nursery() as nursery:

        async def ask_itself() -> None:
            for _ in range(50):
                assert await server._answers_itself(PATIENCE)

        async with await trio.open_tcp_stream(*server.addresses[0]) as client:
            nursery.start_soon(ask_itself)
            for _ in range(50):
                await client.send_all(b"TIME\r\nTIME\r\n")
                await receive_exactly(client, 2 * len(JAM))
        await until(lambda: server.counters.self_checks[SelfCheck.SUCCESS] == 50)
        await until(lambda: server.counters.connections_open == 0)
        counters = server.counters
        assert (counters.requests, counters.responses, counters.connections) == (100, 100, 1)
        assert counters.request_duration.count == 100
        assert sum(counters.disconnects.values()) == 1


def accept_nothing(*_arguments: object, **_options: object) -> Accepted:
    """Leave all clients in the accept queue."""
    return Accepted([], [], more=False, failed=False)


@LANES
async def test_a_check_that_is_accepted_late_is_no_client(
    monkeypatch: pytest.MonkeyPatch, *, fast_lane: bool
) -> None:
    """A connection that was given up before the listener accepted it is not counted as a client's."""
    async with running(fast_lane=fast_lane) as server, trio.open_nursery() as nursery:
        nursery.start_soon(assert_nothing_is_counted, server.counters)
        with monkeypatch.context() as stalled:
            stalled.setattr(listeners, "accept_some", accept_nothing)
            assert not await server._answers_itself(0.05)
            assert len(server._service.admission.own) == 1
        assert await server._answers_itself(PATIENCE)
        own = server._service.own_counters
        await until(lambda: own.connections == 2)
        assert await server._answers_itself(PATIENCE)
        await until(lambda: own.connections_open == 0)
        nursery.cancel_scope.cancel()
        assert server._service.admission.own == set()
        assert server.counters.self_checks[SelfCheck.TIMEOUT] == 1


async def test_connections_that_wait_to_be_accepted_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no connection is ever accepted, the number of open sockets has a limit."""
    monkeypatch.setattr(listeners, "accept_some", accept_nothing)
    async with running() as server:
        for _ in range(MOST_WAITING + 3):
            assert not await server._answers_itself(0.01)
        assert len(server._service.admission.own) == MOST_WAITING
    assert server._service.admission.own == set()


async def test_a_connection_that_was_not_opened_is_given_up() -> None:
    """If the accept queue is full, the next check opens a new connection: the kernel may try again late."""
    own: set[tuple[str, int]] = set()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        client = OwnClient([address], own)
        results: list[SelfCheck] = []
        while own or not results:  # the queue takes one or two
            known = len(own)
            results.append((await client.ask(0.05))[0])
            if len(own) == known:
                break
        assert set(results) == {SelfCheck.TIMEOUT}
        assert 0 < len(own) < MOST_WAITING
        client.close()
    assert own == set()


TRANSPORTS = pytest.mark.parametrize(
    ("secured", "words"),
    [(False, ("--fast-lane",)), (False, ("--no-fast-lane",)), (True, ())],
    ids=["lane", "tasks", "tls"],
)


@TRANSPORTS
async def test_a_load_balances_beside_a_watchdog(
    words: tuple[str, ...], tmp_path: Path, *, secured: bool
) -> None:
    """`load --metrics` finds its own requests only, while a watchdog asks several times a second."""
    ca, trust = tmp_path / "ca.pem", []
    if secured:
        authority().cert_pem.write_to_path(ca)
        words, trust = ("--tls-port", "0", "--tls-certificate", certificate_file()), ["--ca", str(ca)]
    with Told.at(tmp_path / "notify") as told:
        variables = {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": WATCHDOG_MICROSECONDS}
        async with serving(*words, **variables) as program:
            address, web = (f"{host}:{port}" for host, port in (program.address, program.web))
            if secured:
                (address,) = program.log[-1]["tls"]
            command = [*COMMAND, "load", address, "--duration", "1", "--metrics", web, *trust]
            done = await trio.run_process(command, capture_stdout=True, check=False, env=environment())
            assert done.returncode == 0, done.stdout.decode()
            await told.until("WATCHDOG")


@TRANSPORTS
async def test_the_counters_are_those_of_the_clients_beside_a_watchdog(
    words: tuple[str, ...], tmp_path: Path, *, secured: bool
) -> None:
    """Over every transport, the metrics have the clients' requests and connections, and the checks apart."""
    if secured:
        words = ("--tls-port", "0", "--tls-certificate", certificate_file())
    with Told.at(tmp_path / "notify") as told:
        variables = {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": WATCHDOG_MICROSECONDS}
        async with serving(*words, **variables) as program:
            for round_ in range(1, 6):
                if secured:
                    client: Any = await open_tls(parse_address(program.log[-1]["tls"][0]), trusting())
                else:
                    client = await program.connect()
                async with client:
                    for line in (b"TIME\r\n", b"HELLO\r\n"):
                        await client.send_all(line)
                        await told.until("WATCHDOG")
                    assert re.match(rb"JAM ..:..:..\r\nERROR ", await receive_exactly(client, 20))
                    seen = await program.scrape()
                found = {
                    name: seen.total(f"triojam_{name}_total")
                    for name in ("requests", "responses", "rejected", "connections", "lane_handovers")
                }
                expected = dict.fromkeys(found, round_) | {"requests": 2 * round_}
                assert found == expected | {"lane_handovers": round_ * (words == ("--fast-lane",))}
                assert seen.unaccounted == 0
                assert seen.total("triojam_request_duration_seconds_count") == round_
                assert seen.total("triojam_self_checks_total", result="success") >= round_
