"""A server behind a real HAProxy."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.helpers.program import launched, parse_address, serving
from tests.helpers.relays import is_closed_without_reply
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Address
from tests.helpers.servers import (
    ClientEnd,
    TlsClient,
    certificate_file,
    receive_all,
    receive_exactly,
    trusting,
)
from tests.helpers.sockets import JAM_BYTES
from tests.helpers.waiting import eventually
from triojam.core.protocol import REFUSALS
from triojam.core.reasons import Refusal

CONFIGURATION = """
global
    maxconn 100
    nbthread 1
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    timeout check 10s
listen time
    bind fd@{listening}
    {check}
    server one {host}:{port} {options} check inter 100ms fall 100
"""
ASKING_CHECK = r"""
    option tcp-check
    tcp-check send TIME\r\n
    tcp-check expect rstring ^JAM
"""


@asynccontextmanager
async def haproxy(
    folder: Path, server: Address, options: str, check: str = ASKING_CHECK
) -> AsyncIterator[Address]:
    """Run HAProxy in front of a server; yield the address for clients."""
    program = require_program("haproxy", "haproxy")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        file = folder / "haproxy.cfg"
        host, port = server
        file.write_text(
            CONFIGURATION.format(
                listening=listening.fileno(), host=host, port=port, options=options, check=check
            )
        )
        words = [program, "-db", "-q", "-f", str(file)]
        async with launched(words, {}, pass_fds=[listening.fileno()]):
            yield listening.getsockname()


async def connect(address: Address, host: str, *, tls: bool = False) -> ClientEnd:
    """Connect to the balancer from an address of this machine."""
    tcp = await trio.open_tcp_stream(*address, local_address=host)
    return TlsClient(tcp, trusting()) if tls else tcp


async def answers(client: ClientEnd) -> bool:
    """Ask, and return whether the time comes."""
    await client.send_all(b"TIME\r\n")
    return (await receive_exactly(client, JAM_BYTES)).startswith(b"JAM ")


FLAGS = (
    "--proxies", "127.0.0.1", "--deny", "127.0.0.1, 127.0.0.9", "--connections-per-source", "1",
    "--log-level", "debug",
)  # fmt: skip


@pytest.mark.parametrize("options", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"])
@pytest.mark.parametrize("path", ["--fast-lane", "--no-fast-lane"])
async def test_clients_behind_haproxy_have_their_own_addresses(
    tmp_path: Path, options: str, path: str
) -> None:
    """Limits, lists and the log go by the clients' addresses; HAProxy's own checks are answered."""
    async with serving(*FLAGS, path) as program:
        async with haproxy(tmp_path, program.address, options) as balancer:
            staying = await connect(balancer, "127.0.0.5")
            assert await answers(staying)
            async with await connect(balancer, "127.0.0.5") as second:
                assert await receive_all(second) == REFUSALS[Refusal.PER_SOURCE]
            async with await connect(balancer, "127.0.0.6") as other:
                assert await answers(other)
            async with await connect(balancer, "127.0.0.9") as denied:
                assert await is_closed_without_reply(denied)

            async def many_checks() -> bool:
                return (await program.scrape()).total("triojam_responses_total") >= 5

            await eventually(many_checks)
            await staying.send_all(b"HELLO\r\n")
            assert (await program.logged("request rejected"))["peer"].startswith("127.0.0.5:")
            await staying.aclose()
        seen = await program.scrape()
    refused = {reason: seen.total("triojam_connections_rejected_total", reason=reason) for reason in Refusal}
    assert refused == {Refusal.BUSY: 0, Refusal.PER_SOURCE: 1, Refusal.DENIED: 1, Refusal.PROXY_HEADER: 0}


async def test_a_header_of_haproxy_comes_before_tls(tmp_path: Path) -> None:
    """HAProxy relays TLS as it is, with the header in front of it."""
    tls = ("--tls-port", "0", "--tls-certificate", certificate_file())
    async with serving(*FLAGS, *tls) as program:
        address = parse_address(program.log[-1]["tls"][0])
        async with (
            haproxy(tmp_path, address, "send-proxy-v2", check="") as balancer,
            await connect(balancer, "127.0.0.5", tls=True) as client,
        ):
            assert await answers(client)
            second = await connect(balancer, "127.0.0.5", tls=True)
            with pytest.raises(trio.BrokenResourceError):
                await answers(second)
            await trio.aclose_forcefully(second)
        seen = await program.scrape()
    assert seen.total("triojam_connections_rejected_total", reason=Refusal.PER_SOURCE) == 1
    assert seen.total("triojam_connections_rejected_total", reason=Refusal.PROXY_HEADER) == 0


async def test_haproxy_without_headers_is_refused(tmp_path: Path) -> None:
    """A balancer that sends no header gets no connection through, and the metrics say why."""
    async with serving(*FLAGS) as program, haproxy(tmp_path, program.address, "", check="") as balancer:
        async with await connect(balancer, "127.0.0.5") as client:
            await client.send_all(b"TIME\r\n")
            assert await is_closed_without_reply(client)

        async def counted() -> bool:
            seen = await program.scrape()
            return seen.total("triojam_connections_rejected_total", reason=Refusal.PROXY_HEADER) > 0

        await eventually(counted)
