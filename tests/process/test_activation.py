"""Listening sockets that systemd has opened."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.helpers.program import COMMAND, environment, serving
from tests.helpers.servers import PATIENCE, receive_all, receive_exactly
from triojam.errors import ConfigurationError
from triojam.process import systemd
from triojam.process.systemd import take_sockets

ME = 4242
PASSING = (sys.executable, "-m", "tests.helpers.pass_sockets")
# These addresses are not this machine's: a server that opens its own port fails.
ELSEWHERE = ("--host", "192.0.2.1", "--port", "1", "--metrics-host", "192.0.2.1", "--metrics-port", "2")


def environ(count: str, names: str | None = None, pid: int = ME) -> dict[str, str]:
    """Return an environment in which descriptors are passed."""
    variables = {"LISTEN_PID": str(pid), "LISTEN_FDS": count, "HOME": "/"}
    return variables if names is None else variables | {"LISTEN_FDNAMES": names}


def passed(sock: socket.socket, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make this socket the first passed descriptor; return its number."""
    descriptor = sock.detach()
    monkeypatch.setattr(systemd, "FIRST", descriptor)
    return descriptor


@pytest.mark.parametrize(
    ("name", "listener"),
    [
        (None, "time"),
        ("", "time"),
        ("unknown", "time"),
        ("triojam.socket", "time"),
        ("time", "time"),
        ("tls", "tls"),
        ("metrics", "metrics"),
    ],
)
def test_a_socket_is_for_the_listener_of_its_name(
    name: str | None, listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket is for the listener of its name; without a known name, it is for the time port."""
    descriptor = passed(socket.create_server(("127.0.0.1", 0)), monkeypatch)
    variables = environ("1", name)
    os.set_inheritable(descriptor, True)  # noqa: FBT003  # the standard library's signature
    ((found, (sock,)),) = take_sockets(variables, ME).items()
    with sock:
        assert (found, sock.fileno()) == (listener, descriptor)
        assert not sock.get_inheritable()
    assert variables == {"HOME": "/"}


def test_variables_for_another_process_pass_nothing() -> None:
    """Variables for another process pass no sockets, and are removed from the environment."""
    variables = environ("1", pid=ME + 1)
    assert take_sockets(variables, ME) == {}
    assert variables == {"HOME": "/"}
    assert take_sockets({}, ME) == {}


@pytest.mark.parametrize(
    ("variables", "culprit"),
    [
        (environ("one"), "invalid value 'one' for LISTEN_FDS"),
        (environ("1000000000000"), "invalid value '1000000000000' for LISTEN_FDS"),
        (environ("9" * 5000), "invalid value '9+"),
        (environ("-1"), "invalid value '-1' for LISTEN_FDS"),
        (environ("2", "time"), "invalid value 'time' for LISTEN_FDNAMES"),
    ],
)
def test_a_bad_variable_is_an_error(variables: dict[str, str], culprit: str) -> None:
    """A variable with a wrong value is an error that names the variable."""
    with pytest.raises(ConfigurationError, match=culprit):
        take_sockets(variables, ME)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_INET, socket.SOCK_STREAM),  # does not listen
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
    ],
)
def test_an_unusable_socket_is_an_error(
    family: socket.AddressFamily, kind: socket.SocketKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is not a listening TCP socket is an error that names it; so is a closed descriptor."""
    descriptor = passed(socket.socket(family, kind), monkeypatch)
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=rf"invalid descriptor {descriptor} \(web\) in LISTEN_FDS"
        ):
            take_sockets(environ("1", "web"), ME)


def test_a_descriptor_of_a_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor of a file is the same error."""
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(systemd, "FIRST", file.fileno())
        with pytest.raises(ConfigurationError, match="without a name"):
            take_sockets(environ("1"), ME)


async def ask(address: str) -> bytes:
    """Ask the server at host:port."""
    host, port = address.rsplit(":", 1)
    async with await trio.open_tcp_stream(host, int(port)) as client:
        await client.send_all(b"TIME\r\n")
        return await receive_exactly(client, 4)


@pytest.mark.parametrize("lane", ["--fast-lane", "--no-fast-lane"])
async def test_passed_sockets_replace_the_addresses_of_the_settings(lane: str) -> None:
    """With sockets passed for both listeners, the addresses in the settings are not used."""
    sockets = ("time=127.0.0.1", "metrics=127.0.0.1", "triojam.socket=127.0.0.1")
    async with serving(lane, ports=ELSEWHERE, before=[*PASSING, *sockets, "--"]) as program:
        listening = program.log[-1]
        assert len(listening["addresses"]) == 2
        assert [await ask(address) for address in listening["addresses"]] == [b"JAM "] * 2
        assert (await program.scrape()).total("triojam_responses_total") == 2


@pytest.mark.parametrize("name", ["tls", "metrics"])
def test_a_socket_for_a_listener_that_is_off_is_an_error(name: str) -> None:
    """A socket for a listener without a port is an error that names the setting, and exit status 2."""
    words = ["--metrics-port", "none", "--tls-port", "none"]
    run = subprocess.run(
        [*PASSING, f"{name}=127.0.0.1", "--", *COMMAND, *words],
        env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith(
        f"triojam: invalid value 'none' for --{name}-port: expected a port, if a socket"
    )
    assert run.stderr.count("\n") == 1


async def test_an_ipv4_client_of_an_ipv6_socket_is_logged_by_its_ipv4_address() -> None:
    """A socket for both families shows IPv4 clients as ::ffff:…; the log shows the IPv4 address."""
    before = [*PASSING, "time=::", "metrics=127.0.0.1", "--"]
    async with serving("--log-level", "debug", ports=ELSEWHERE, before=before) as program:
        async with await trio.open_tcp_stream("127.0.0.1", program.address[1]) as client:
            await client.send_all(b"QUIT\r\n")
            assert await receive_all(client) == b""
            host, port = client.socket.getsockname()
        assert (await program.logged("connection ended"))["peer"] == f"{host}:{port}"
