"""The container's health check: its own command line, against servers of all kinds."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.helpers.bad_servers import Behaviour, closes_at_once, resets_at_once, says, start_bad
from tests.helpers.pages import ROOT
from tests.helpers.program import FREE_PORTS, environment, serving
from tests.helpers.servers import PATIENCE, certificate_file
from tests.helpers.sockets import JAM_BYTES
from triojam import Settings
from triojam.cli.main import main
from triojam.client.health import Health, ask_for_health

JAM_LINE = re.compile(r"JAM \d\d:\d\d:\d\d\n")
USER = "me:$2b$04$" + "a" * 21 + "." + "b" * 30 + "a\n"
# A health check that obeyed a proxy would find none at this address (RFC 5737).
PROXIES = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://203.0.113.1:1")


def health_check() -> list[str]:
    """Return the command of the container's health check, for this Python."""
    (words,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    program, *rest = json.loads(words)
    assert program == "triojam"
    return [sys.executable, "-m", "triojam", *rest]


async def check(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the health check in an environment. words: more flags, as in --health-cmd."""
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            [*health_check(), *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(**PROXIES | variables),
        )
    return subprocess.CompletedProcess(words, ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def on(host: str) -> Sequence[str]:
    """Return the words for a server on free ports of a host."""
    return ["--host", host, *FREE_PORTS[2:]]


def test_the_default_is_the_default_port_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without settings, the check asks the server that plain `triojam` starts."""
    asked: list[object] = []

    def ask(*address: object, **_: object) -> Health:
        asked.extend(address)
        return Health(healthy=True, said="")

    monkeypatch.setattr("triojam.client.health.ask_for_health", ask)
    assert main(health_check()[3:]) == 0
    assert asked == [Settings().host, Settings().port]


async def test_a_port_from_the_environment_is_asked() -> None:
    """TRIOJAM_PORT of the container is the port of the check."""
    async with serving() as program:
        ended = await check(TRIOJAM_PORT=str(program.address[1]))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert JAM_LINE.fullmatch(ended.stdout)


async def test_a_port_from_the_settings_file_is_asked(tmp_path: Path) -> None:
    """The file that TRIOJAM_CONFIG names has the port of the check."""
    file = tmp_path / "triojam.toml"
    async with serving() as program:
        file.write_text(f"port = {program.address[1]}\n")
        ended = await check(TRIOJAM_CONFIG=str(file))
    assert JAM_LINE.fullmatch(ended.stdout), ended.stderr


async def test_flags_of_a_health_command_are_read() -> None:
    """A server whose port is a flag has a health command with the same flag, which overrides the variable."""
    async with serving() as program:
        ended = await check("--port", str(program.address[1]), TRIOJAM_PORT="1")
    assert JAM_LINE.fullmatch(ended.stdout), ended.stderr


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "127.0.0.77", "localhost"])
async def test_the_host_of_the_settings_is_asked(host: str) -> None:
    """A server on one address is asked there; one on all addresses is asked on loopback."""
    async with serving(ports=on(host)) as program:
        ended = await check(TRIOJAM_HOST=host, TRIOJAM_PORT=str(program.address[1]))
    assert JAM_LINE.fullmatch(ended.stdout), ended.stderr


async def test_a_server_on_ipv6_only_is_asked_there() -> None:
    """A server on :: has no IPv4 address, and a check of all addresses tries both."""
    async with serving(ports=on("::")) as program:
        for host in ("::", "*"):
            ended = await check(TRIOJAM_HOST=host, TRIOJAM_PORT=str(program.address[1]))
            assert JAM_LINE.fullmatch(ended.stdout), ended.stderr


async def test_passwords_and_tls_of_the_metrics_do_not_matter(tmp_path: Path) -> None:
    """The check does not use the metrics listener, and needs none of its files."""
    (tmp_path / "passwords").write_text(USER)
    words = ["--metrics-passwords", str(tmp_path / "passwords"), "--metrics-tls"]
    async with serving(*words, "--tls-certificate", certificate_file()) as program:
        port = str(program.address[1])
        ended = await check(TRIOJAM_PORT=port, TRIOJAM_METRICS_TLS="true", TRIOJAM_METRICS_PASSWORDS="/none")
        assert JAM_LINE.fullmatch(ended.stdout), ended.stderr
        program.process.kill()  # its metrics, which would be held to the end, want a password
        await program.process.wait()


async def test_a_full_server_is_healthy() -> None:
    """A server that refuses the check because it is full answers, and a restart would not help."""
    async with serving("--max-connections", "1") as program, await program.connect() as client:
        await client.send_all(b"TIME\r\n")
        assert len(await client.receive_some()) == JAM_BYTES
        ended = await check(TRIOJAM_PORT=str(program.address[1]))
        await client.aclose()
    assert (ended.returncode, ended.stdout) == (0, "ERROR busy: too many connections, try again later\n")


async def test_a_server_that_denies_its_own_machine_is_healthy() -> None:
    """A denied client is closed without a reply; where the settings say so, that is an answer, too."""
    async with serving("--deny", "127.0.0.0/8") as program:
        port = str(program.address[1])
        allowed = await check(TRIOJAM_PORT=port)
        denied = await check(TRIOJAM_PORT=port, TRIOJAM_DENY="127.0.0.0/8")
    assert (allowed.returncode, denied.returncode) == (1, 0)
    assert "127.0.0.1" in denied.stdout


@pytest.mark.parametrize("header_is_due", [True, False])
async def test_a_server_behind_a_proxy_on_its_own_machine_is_healthy(*, header_is_due: bool) -> None:
    """The check sends a PROXY header if the settings have its address in `proxies`, and only then."""
    proxies = "127.0.0.0/8" if header_is_due else "127.0.0.2"
    async with serving("--proxies", proxies) as program:
        ended = await check(TRIOJAM_PORT=str(program.address[1]), TRIOJAM_PROXIES=proxies)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("JAM ")


async def test_a_stopped_server_is_unhealthy() -> None:
    """The kernel still accepts connections for a process that stands still, and no reply comes."""
    async with serving() as program:
        program.process.send_signal(signal.SIGSTOP)
        ended = await check(TRIOJAM_PORT=str(program.address[1]))
        program.process.send_signal(signal.SIGCONT)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"127.0.0.1:{program.address[1]}: no reply in time\n"


async def test_a_dead_server_is_unhealthy() -> None:
    """A closed port is one line, and status 1."""
    async with serving() as program:
        pass
    ended = await check(TRIOJAM_PORT=str(program.address[1]))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"127.0.0.1:{program.address[1]}: Connection refused\n"


async def test_a_port_that_the_system_chooses_cannot_be_checked() -> None:
    """With port 0 the check cannot know the port; the error names the variable."""
    ended = await check(TRIOJAM_PORT="0")
    assert ended.returncode == 2
    assert ended.stderr == (
        "triojam: invalid value '0' for TRIOJAM_PORT: expected a port from 1 to 65535, to ask there\n"
    )


@pytest.mark.parametrize(
    "behaviour",
    [says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), says(b"JAM 99:99:99\r\n"), says(b"x" * 5000),
     closes_at_once, resets_at_once],
    ids=["another protocol", "no time", "no line", "closes", "resets"],
)  # fmt: skip
async def test_another_server_on_the_port_is_unhealthy(behaviour: Behaviour, nursery: trio.Nursery) -> None:
    """Only the time or an ERROR line is a reply of the server."""
    host, port = await start_bad(nursery, behaviour)
    found = await trio.to_thread.run_sync(
        lambda: ask_for_health(host, port, allow="", deny="", proxies="", patience=PATIENCE)
    )
    assert not found.healthy
    assert found.said.startswith(f"{host}:{port}: ")
    nursery.cancel_scope.cancel()


async def test_an_endless_reply_is_unhealthy(nursery: trio.Nursery) -> None:
    """A reply that comes in pieces and has no end does not keep the check waiting."""

    async def drip(stream: trio.abc.Stream) -> None:
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.02)

    host, port = await start_bad(nursery, drip)
    with trio.fail_after(PATIENCE):
        found = await trio.to_thread.run_sync(
            lambda: ask_for_health(host, port, allow="", deny="", proxies="", patience=0.5),
            abandon_on_cancel=True,
        )
    assert found == Health(healthy=False, said=f"{host}:{port}: no reply in time")
    nursery.cancel_scope.cancel()
