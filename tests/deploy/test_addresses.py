"""Several servers on one machine, as docs/operate-many-cores.md describes them."""

from tests.helpers.program import COMMAND, launched, serving


async def test_servers_on_addresses_of_their_own_have_the_same_ports() -> None:
    """A second server has the ports of the first one, on another address."""
    hosts = ("--host", "127.0.0.2", "--metrics-host", "127.0.0.2")
    async with serving(ports=(*hosts, "--port", "0", "--metrics-port", "0")) as first:
        ports = ("--port", str(first.address[1]), "--metrics-port", str(first.web[1]))
        async with serving(ports=("--host", "127.0.0.3", "--metrics-host", "127.0.0.3", *ports)) as second:
            assert (first.address[0], second.address[0]) == ("127.0.0.2", "127.0.0.3")
            assert (first.address[1], first.web[1]) == (second.address[1], second.web[1])
            for program in (first, second):
                async with await program.connect() as client:
                    await client.send_all(b"TIME\r\n")
                    assert (await client.receive_some()).startswith(b"JAM ")
        async with launched([*COMMAND, *ports, "--metrics-host", "127.0.0.4"], {}) as third:
            assert await third.wait() == 1
