"""Listening on hosts whose addresses are missing, late, repeated or taken."""

import errno
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.helpers.program import descriptors
from tests.helpers.requirements import cannot_run
from tests.helpers.resolver import Resolver
from tests.helpers.servers import Events, receive_exactly, settings_for_test
from tests.helpers.service_manager import Told
from triojam import ListenError, Server, SettingError, serve
from triojam.process import sockets
from triojam.process.sockets import listen
from triojam.process.systemd import ServiceManager
from triojam.server import open_server

# For documentation (RFC 5737 and 3849): no machine has these addresses.
NOWHERE, NOWHERE_6 = "203.0.113.1", "2001:db8::1"
HOST = "time.example.org"


@pytest.mark.parametrize("host", [NOWHERE, NOWHERE_6, "fe80::1%no-such-link"])
async def test_an_address_that_is_not_there_yet_is_no_wrong_setting(host: str) -> None:
    """The error is one that a service manager tries again, and leaves no descriptor."""
    before = descriptors(os.getpid())
    with pytest.raises(ListenError, match="this machine does not have the address, or not yet") as caught:
        await listen("host", host, 45000)
    assert f"{host}]:45000" in str(caught.value) or f" {host}:45000" in str(caught.value)
    assert descriptors(os.getpid()) == before


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (socket.EAI_AGAIN, ListenError, "the name server does not answer, or not yet"),
        (socket.EAI_FAIL, ListenError, "the text of the system"),
        (socket.EAI_NONAME, SettingError, "for host: expected an IP address"),
        (socket.EAI_NODATA, SettingError, "for host: expected an IP address"),
    ],
)
async def test_only_an_unknown_name_is_a_wrong_setting(code: int, kind: type[Exception], words: str) -> None:
    """A name server that does not answer, or fails, may do better later."""
    trio.socket.set_custom_hostname_resolver(Resolver(code=code))
    with pytest.raises(kind, match=words):
        await listen("host", HOST, 0)


@pytest.mark.parametrize("missing", [NOWHERE, NOWHERE_6])
async def test_a_host_is_served_on_the_addresses_that_exist(missing: str, nursery: trio.Nursery) -> None:
    """A warning names the address on which the server does not listen."""
    trio.socket.set_custom_hostname_resolver(Resolver(missing, "127.0.0.1"))
    events = Events()
    server: Server = await nursery.start(
        lambda task_status: serve(
            settings_for_test(host=HOST), make_logger=events.make_logger, task_status=task_status
        )
    )
    (address,) = server.addresses
    assert address[0] == "127.0.0.1"
    (warning,) = [each for each in events if each["level"] == "warning"]
    assert warning["event"] == "not listening on an address"
    assert missing in warning["address"]
    assert (warning["setting"], warning["reason"]) == (
        "host",
        "this machine does not have the address, or not yet",
    )
    nursery.cancel_scope.cancel()


async def test_a_family_that_is_switched_off_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without IPv6 in the kernel, a host is served over IPv4; `*` does not even warn."""
    make = trio.socket.socket

    def without_ipv6(family: int, kind: int) -> trio.socket.SocketType:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return make(family, kind)

    monkeypatch.setattr(trio.socket, "socket", without_ipv6)
    trio.socket.set_custom_hostname_resolver(Resolver("::1", "127.0.0.1"))
    for host, warnings in ((HOST, ["[::1]:0"]), ("*", [])):
        (sock,), missed = await listen("host", host, 0)
        with sock:
            assert [each.address for each in missed] == warnings


async def test_an_address_that_a_host_has_twice_is_used_once() -> None:
    """Some entries of /etc/hosts give an address twice: it does not collide with itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.1", "127.0.0.1"))
    (sock,), missed = await listen("host", HOST, port)
    sock.close()
    assert not missed


async def test_a_host_without_any_address_of_this_machine_is_an_error() -> None:
    """If no address works, the server does not start."""
    trio.socket.set_custom_hostname_resolver(Resolver(NOWHERE, NOWHERE_6))
    with pytest.raises(ListenError, match=rf"cannot listen on {HOST}:45000: .* not yet$"):
        await listen("host", HOST, 45000)


async def test_a_port_in_use_on_one_address_is_an_error() -> None:
    """Another server that has the port on one address of a host would answer a part of the clients."""
    trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.2", "127.0.0.1"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=rf"{HOST}:{port}: the port is already in use"):
            await listen("host", HOST, port)
        with pytest.raises(ConnectionRefusedError):  # nothing listens on the other address either
            socket.create_connection(("127.0.0.2", port))


@pytest.mark.parametrize("closing", [False, True], ids=["open", "closing"])
async def test_a_port_of_an_outgoing_connection_is_told_apart(*, closing: bool) -> None:
    """The error says that no server has the port, and how to keep it free."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listening.getsockname()))
        port = client.getsockname()[1]
        accepted, _ = listening.accept()
        stack.enter_context(accepted)
        if closing:  # the side that closes first has TIME_WAIT
            client.close()
            assert accepted.recv(1) == b""
            accepted.close()
        with pytest.raises(ListenError) as caught:
            await listen("host", "127.0.0.1", port)
    held = f"cannot listen on 127.0.0.1:{port}: the port is held by an outgoing connection"
    way_out = f"keep it free with: sysctl net.ipv4.ip_local_reserved_ports={port}"
    assert str(caught.value) == f"{held}; {way_out}"


async def test_a_listener_is_no_outgoing_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with open connections has the port; so may one that the table of sockets does not show."""
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_connection(other.getsockname()):
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=f"{port}: the port is already in use$"):
            await listen("host", "127.0.0.1", port)
        monkeypatch.setattr(sockets, "Path", lambda _: Path("/no/such/file"))
        with pytest.raises(ListenError, match=f"{port}: the port is already in use$"):
            await listen("host", "127.0.0.1", port)


def link_local_address() -> str:
    """Return a link-local address of this machine, with its interface."""
    with Path("/proc/net/if_inet6").open(encoding="ascii") as rows:
        for digits, _, _, scope, _, name in map(str.split, rows):
            if scope == "20":
                return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))}%{name}"
    cannot_run("needs a network interface with a link-local IPv6 address")


@pytest.mark.parametrize("fast_lane", [True, False])
async def test_a_link_local_address_keeps_its_interface(*, fast_lane: bool, tmp_path: Path) -> None:
    """The address of such a server can be connected to, and its watchdog is fed."""
    host, events = link_local_address(), Events()
    with Told.at(tmp_path / "notify") as told:
        server = await open_server(
            settings_for_test(host=host, fast_lane=fast_lane, deny="fe80::/10"),
            make_logger=events.make_logger,
            log_messages_dropped=int,
            manager=ServiceManager(told.address, 1.0),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            (address,) = server.addresses
            assert address[0] == host
            assert events.named("serving")[0]["addresses"] == [f"[{host}]:{address[1]}"]
            await told.until("WATCHDOG")  # although the server denies its own network
            nursery.cancel_scope.cancel()


async def test_an_answer_comes_from_a_link_local_address(nursery: trio.Nursery) -> None:
    """A client that uses the logged address is answered, and is logged with the interface, too."""
    host, events = link_local_address(), Events()
    server: Server = await nursery.start(
        lambda task_status: serve(
            settings_for_test(host=host), make_logger=events.make_logger, task_status=task_status
        )
    )
    async with await trio.open_tcp_stream(*server.addresses[0]) as client:
        await client.send_all(b"HELLO\r\nTIME\r\n")
        assert b"ERROR" in await receive_exactly(client, 20)
        (rejected,) = events.named("request rejected")
        assert rejected["peer"] == f"[{host}]:{client.socket.getsockname()[1]}"
    nursery.cancel_scope.cancel()
