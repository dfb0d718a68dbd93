"""The files of deploy/ for HAProxy: HAProxy accepts them, and they agree with the settings of the servers."""

import re
import socket
import subprocess
from pathlib import Path

import pytest
import trio

from tests.deploy.files import CONFIGURATION, DEPLOY, SYSCTLS, settings_beside, sysctls
from tests.deploy.fleet import LAME_DUCK
from tests.helpers.program import launched
from tests.helpers.requirements import require_program
from tests.helpers.servers import PATIENCE
from triojam import Settings
from triojam.serving.listeners import ACCEPTS_AT_ONCE, LAST_TURNS

DEFAULTS = Settings()
TEXT = CONFIGURATION.read_text("utf-8")
ALTERNATIVE = re.compile(r"^    #(?=stick-table |tcp-request )", re.MULTILINE)


def seconds(text: str) -> float:
    """Return a time of HAProxy's in seconds."""
    found = re.fullmatch(r"(\d+)(ms|s)", text)
    assert found
    return int(found[1]) / (1000 if found[2] == "ms" else 1)


def value(pattern: str) -> str:
    """Return the one value that a pattern finds in the configuration."""
    (found,) = re.findall(pattern, TEXT, re.MULTILINE)
    return str(found)


def accepted(file: Path) -> str:
    """Let HAProxy check a configuration, which must be valid; return what it says besides."""
    program = require_program("haproxy", "haproxy")
    ended = subprocess.run(
        [program, "-c", "-f", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout.replace("Configuration file is valid\n", "")


def test_haproxy_accepts_the_configuration() -> None:
    """HAProxy finds no error, and has no warning."""
    assert accepted(CONFIGURATION) == ""


def test_haproxy_accepts_the_limits_by_source(tmp_path: Path) -> None:
    """The limits that stand in comments are valid, too."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(ALTERNATIVE.sub("    ", TEXT), "utf-8")
    assert file.read_text("utf-8").count("\n    tcp-request ") == 2
    assert accepted(file) == ""


def test_haproxy_uses_the_default_ports() -> None:
    """Clients and servers use the default port of the time service, and checks that of the metrics."""
    assert value(r"^    bind :::(\d+) v4v6$") == str(DEFAULTS.port)
    assert set(re.findall(r"^    server \w+ [\d.]+:(\d+)$", TEXT, re.MULTILINE)) == {str(DEFAULTS.port)}
    assert value(r"\bcheck port (\d+)") == str(DEFAULTS.metrics_port)


def test_haproxy_notices_a_lame_duck_in_time() -> None:
    """The lame duck delay is longer than the time that the checks need, in the file and in the tests."""
    noticed = seconds(value(r"\binter (\w+)")) * int(value(r"\bfall (\d+)"))
    assert f"than the checks below need to see that a server stops: {noticed:g} s" in TEXT
    assert settings_beside()["lame_duck"] > LAME_DUCK > 2 * noticed


async def test_haproxy_logs_a_client_that_no_server_answers(tmp_path: Path) -> None:
    """HAProxy's log has a line for a client that got no server."""
    program = require_program("haproxy", "haproxy")
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        text = TEXT.partition("# For Prometheus")[0]
        text = text.replace(f":::{DEFAULTS.port} v4v6", f"fd@{listening.fileno()}")
        text = re.sub(
            r"192\.0\.2\.1[123]:\d+$", f"127.0.0.1:{closed.getsockname()[1]}", text, flags=re.MULTILINE
        )
        text = re.sub(r"^    (user|group|chroot|default-server) .*$", "", text, flags=re.MULTILINE)
        file = tmp_path / "haproxy.cfg"
        file.write_text(text, "utf-8")
        command = [program, "-db", "-f", str(file)]
        async with launched(command, {}, pass_fds=[listening.fileno()]) as process:
            assert process.stderr is not None
            async with await trio.open_tcp_stream(*listening.getsockname()) as client:
                with trio.fail_after(PATIENCE):
                    assert await client.receive_some() == b""
                    said = b""
                    while b" SC " not in said:  # the server side, while connecting
                        more = await process.stderr.receive_some()
                        assert more
                        said += more
    assert b" time triojam/time" in said


@pytest.mark.parametrize("name", ["client", "server"])
def test_haproxy_leaves_idle_clients_to_the_server(name: str) -> None:
    """HAProxy's timeouts are longer than the default idle_timeout."""
    assert seconds(value(rf"^    timeout {name} (75s)$")) > DEFAULTS.idle_timeout


@pytest.mark.parametrize("file", SYSCTLS, ids=lambda file: file.stem)
def test_each_sysctl_exists_and_has_a_reason(file: Path) -> None:
    """The kernel knows each key, except those that may fail, and a comment stands above it."""
    found = list(sysctls(file))
    for key, _, may_fail in found:
        assert may_fail or (Path("/proc/sys") / key.replace(".", "/")).exists(), key
    for paragraph in file.read_text("utf-8").strip().split("\n\n"):
        assert paragraph.startswith("# "), paragraph
    assert len(found) >= 2


def test_the_default_ports_are_reserved() -> None:
    """The kernel gives neither of the default ports to an outgoing connection."""
    keys = {key: value for file in SYSCTLS for key, value, _ in sysctls(file)}
    assert keys["net.ipv4.ip_local_reserved_ports"] == f"{DEFAULTS.port}-{DEFAULTS.metrics_port}"


def test_systemd_gives_the_drain_of_a_fleet_its_time() -> None:
    """SIGKILL comes after the lame duck delay that haproxy.cfg asks for, and the grace time."""
    (stop,) = re.findall(
        r"^TimeoutStopSec=(\d+)$", (DEPLOY / "triojam.service").read_text("utf-8"), re.MULTILINE
    )
    assert int(stop) >= settings_beside()["lame_duck"] + DEFAULTS.grace + 5


def test_the_accept_queue_of_the_sysctls_is_used() -> None:
    """The socket unit asks for the longest queue that the kernel allows, and a drain empties all of it."""
    (allowed,) = (
        int(value) for file in SYSCTLS for key, value, _ in sysctls(file) if key.endswith("somaxconn")
    )
    (asked,) = re.findall(r"^Backlog=(\d+)$", (DEPLOY / "triojam.socket").read_text("utf-8"), re.MULTILINE)
    assert allowed <= int(asked)
    assert allowed <= LAST_TURNS * ACCEPTS_AT_ONCE
