"""The server as a library: `await nursery.start(triojam.serve, settings)`."""

import os
from dataclasses import replace

import pytest
import trio

import triojam
from tests.conftest import Start
from tests.helpers.program import descriptors
from tests.helpers.servers import JAM, Events, receive_exactly, settings_for_test, until
from triojam.core.reasons import Disconnect, Reload
from triojam.process import sockets
from triojam.process.sockets import RESERVED_DESCRIPTORS, connection_limit, descriptor_limit


async def test_start_reports_addresses_and_cancel_cleans_up() -> None:
    """start() returns the real addresses of both listeners; after cancelling, no descriptor is left."""
    before = descriptors(os.getpid())
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            server: triojam.Server = await nursery.start(triojam.serve, settings_for_test(metrics_port=0))
            for host, port in (*server.addresses, *server.metrics_addresses):
                assert host == "127.0.0.1"
                assert port > 0
            client = await trio.open_tcp_stream(*server.addresses[0])
            scraper = await trio.open_tcp_stream(*server.metrics_addresses[0])
            async with client, scraper:
                await client.send_all(b"TIME\r\nTI")
                assert len(await receive_exactly(client, len(JAM))) == len(JAM)
                nursery.cancel_scope.cancel()
                await trio.lowlevel.checkpoint_if_cancelled()
        assert server.counters.unaccounted == 0
        assert server.counters.connections_open == 0
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*server.addresses[0])
    assert descriptors(os.getpid()) == before


async def test_default_host_listens_on_ipv4_and_ipv6() -> None:
    """By default the service listens on IPv4 and on IPv6."""
    async with trio.open_nursery() as nursery:
        server: triojam.Server = await nursery.start(triojam.serve, settings_for_test(host="*"))
        addresses = dict(server.addresses)
        for any_host, host in (("0.0.0.0", "127.0.0.1"), ("::", "::1")):
            if any_host in addresses:
                async with await trio.open_tcp_stream(host, addresses[any_host]) as client:
                    await client.send_all(b"TIME\r\n")
                    assert (await receive_exactly(client, 4)) == b"JAM "
        assert "0.0.0.0" in addresses
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("taken", ["port", "metrics_port"])
async def test_port_in_use_is_an_error(taken: str) -> None:
    """A used port is an error with its address, and leaves no descriptor."""
    (other,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with other:
        port = other.socket.getsockname()[1]
        before = descriptors(os.getpid())
        with pytest.raises(triojam.ListenError, match=rf"127\.0\.0\.1:{port}: the port is already in use"):
            await triojam.serve(settings_for_test(**{taken: port}))
        assert descriptors(os.getpid()) == before


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 100])
async def test_an_unknown_host_is_an_error(host: str) -> None:
    """An unknown name is an error about the setting."""
    with pytest.raises(triojam.SettingError, match=r"invalid value '.*' for host: expected an IP address"):
        await triojam.serve(settings_for_test(host=host))


async def test_forbidden_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other failure to listen is one line with the reason of the kernel."""

    async def refuse(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sockets, "_listen_on", refuse)
    with pytest.raises(triojam.ListenError, match=r"127\.0\.0\.1:1: Permission denied"):
        await triojam.serve(settings_for_test(port=1))


async def test_reload_applies_settings_and_counts_itself(start_socket: Start) -> None:
    """A reload applies settings, names those that need a restart, and is counted."""
    running = await start_socket()
    server = running.server
    assert server is not None
    settings = server._settings
    server.reload(
        replace(
            settings, port=1, timezone="Asia/Jakarta", idle_timeout=0.05, max_connections=7, log_level="info"
        )
    )
    (event,) = running.events.named("settings reloaded")
    assert event["need_restart"] == ["port"]
    assert set(event["changed"]) == {"timezone", "idle_timeout", "max_connections", "log_level"}
    assert server.counters.connections_limit == 7
    client = await running.connect()
    await client.send_all(b"TIME\r\n")
    assert await receive_exactly(client, len(JAM)) == b"JAM 19:34:56\r\n"
    await until(lambda: server.counters.disconnects[Disconnect.IDLE] == 1)
    assert not running.events.named("connection ended"), "debug lines are off now"
    with pytest.raises(triojam.SettingError):
        await server.reload_from(lambda: replace(settings, metrics_passwords="/nonexistent"))
    assert server.counters.config_reloads == {Reload.SUCCESS: 1, Reload.FAILURE: 1}


async def test_lame_duck_serves_new_clients(start_socket: Start) -> None:
    """During the lame duck delay the server is not ready, and serves new clients."""
    running = await start_socket(lame_duck=0.2)
    server = running.server
    assert server is not None
    assert server.not_ready() is None
    server.drain()
    await until(lambda: server.not_ready() == "draining")
    assert await running.ask(b"TIME\r\n") == JAM
    with trio.fail_after(5):
        await running.finished.wait()


async def test_drain_serves_the_accept_queue(start_socket: Start) -> None:
    """Connections in the accept queue at the start of the drain are accepted and answered."""
    running = await start_socket()
    clients = [await running.connect() for _ in range(200)]
    for client in clients:
        await client.send_all(b"TIME\r\n")
    running.drain()
    for client in clients:
        assert await receive_exactly(client, len(JAM)) == JAM
        await client.aclose()
    await running.finished.wait()
    assert running.counters.responses == 200


def test_connection_limit_leaves_descriptors() -> None:
    """The limit is the setting, but at most the descriptors minus a reserve; 0 means that maximum."""
    most = descriptor_limit() - RESERVED_DESCRIPTORS
    assert connection_limit(3) == 3
    assert connection_limit(0) == connection_limit(10**9) == most


async def test_logs_to_the_standard_library_by_default(caplog: pytest.LogCaptureFixture) -> None:
    """A program that calls `serve` itself gets the log lines in its logging."""
    caplog.set_level("INFO", logger="triojam")
    async with trio.open_nursery() as nursery:
        await nursery.start(triojam.serve, settings_for_test())
        nursery.cancel_scope.cancel()
    assert [record.getMessage() for record in caplog.records] == ["serving"]


async def test_first_line_has_the_version() -> None:
    """The first log line has the version."""
    events = Events()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[triojam.Server]) -> None:
            await triojam.serve(settings_for_test(), make_logger=events.make_logger, task_status=task_status)

        await nursery.start(run)
        nursery.cancel_scope.cancel()
    assert events[0]["version"] == triojam.__version__
