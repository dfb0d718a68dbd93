"""Honest clients: each request gets its answer during the whole run.

Each function is one kind of client. It runs until its time is over, and ends with its last answer.
"""

import trio

from tests.soak.clients import Client

REQUEST = b"TIME\r\n"
PIPELINED = 64
PER_CONNECTION = 50


async def keeps_asking(client: Client) -> None:
    """Send requests on one connection."""
    async with await client.connect() as stream:
        while client.goes_on:
            await client.ask(stream, [REQUEST], 1)
            await trio.sleep(client.chance.uniform(0, 0.02))


async def asks_once(client: Client) -> None:
    """Connect, send a request and close."""
    while client.goes_on:
        async with await client.connect() as stream:
            await client.ask(stream, [REQUEST], 1)
        await trio.sleep(client.chance.uniform(0, 0.03))


async def pipelines(client: Client) -> None:
    """Send many requests at a time."""
    async with await client.connect() as stream:
        while client.goes_on:
            await client.ask(stream, [REQUEST * PIPELINED], PIPELINED)
            await trio.sleep(client.chance.uniform(0, 0.15))


async def sends_in_pieces(client: Client) -> None:
    """Send lines that are cut anywhere."""
    async with await client.connect() as stream:
        while client.goes_on:
            lines = b"TIME if you please\r\n" * client.chance.randint(1, 3)
            cuts = sorted(client.chance.sample(range(1, len(lines)), client.chance.randint(1, 4)))
            pieces = [lines[a:b] for a, b in zip([0, *cuts], [*cuts, len(lines)], strict=True)]
            await client.ask(stream, pieces, lines.count(b"\n"))
            await trio.sleep(client.chance.uniform(0, 0.02))


async def mistypes(client: Client) -> None:
    """Send bad lines among good ones, and leave with QUIT."""
    while client.goes_on:
        async with await client.connect() as stream:
            for bad in (b"HELLO\r\n", b"TIME\n", b"\r\n"):
                await client.ask(stream, [bad, REQUEST], 1, 1)
            await stream.send_all(b"QUIT\r\n")
        await trio.sleep(client.chance.uniform(0, 0.1))


async def half_closes(client: Client) -> None:
    """End the sending side before reading."""
    while client.goes_on:
        async with await client.connect() as stream:
            await client.ask(stream, [REQUEST], 1, end=True)
        await trio.sleep(client.chance.uniform(0, 0.1))


async def asks_over_tls(client: Client) -> None:
    """Send a few requests on each TLS connection."""
    while client.goes_on:
        async with await client.connect_tls() as stream:
            for _ in range(PER_CONNECTION):
                await client.ask(stream, [REQUEST], 1)
                await trio.sleep(client.chance.uniform(0, 0.02))


# The number of clients of each kind.
HONEST = {
    keeps_asking: 6,
    asks_once: 4,
    pipelines: 4,
    sends_in_pieces: 2,
    mistypes: 2,
    half_closes: 1,
    asks_over_tls: 4,
}
