"""Hostile and broken clients. Each function is one visit, which is repeated until it is cancelled.

docs/robustness.md has the reason for each. `EXPECTED` in judge has the counters that they must increase.
"""

import itertools
from base64 import b64encode

import trio

from tests.helpers.sockets import reset_on_close
from tests.soak.clients import Client, Visit
from tests.soak.sampling import AUTHORIZATION

TLS_HELLO = bytes.fromhex("160301020001000000")
REQUESTS = b"TIME\r\n" * 1000
SMALL_BUFFER = 4096
POLL = f"GET /status?since=0 HTTP/1.1\r\nHost: a\r\nAuthorization: {AUTHORIZATION}\r\n\r\n".encode()


async def drips(client: Client) -> None:
    """Send single bytes of a line that never ends."""
    async with await client.connect_either() as stream:
        for byte in itertools.cycle(b"TIME and "):
            await stream.send_all(bytes([byte]))
            await trio.sleep(client.chance.uniform(0.1, 1.0))


async def never_ends_its_line(client: Client) -> None:
    """Send a line without end."""
    async with await client.connect_either() as stream:
        while True:
            await stream.send_all(b"x" * 65_536)


async def babbles(client: Client) -> None:
    """Send random bytes, HTTP, a TLS hello, or terminal escapes."""
    noise = client.chance.randbytes(client.chance.randint(1, 400))
    pieces = [
        noise,
        b"GET / HTTP/1.1\r\nHost: time\r\n\r\n",
        TLS_HELLO,
        b"\x1b]0;owned\x07\x1b[2J\r\n",
        b"\n" * 30,
    ]
    async with await client.connect() as stream:
        await stream.send_all(client.chance.choice(pieces))
        await stream.send_eof()
        await _read(stream)


async def saves_its_error_budget(client: Client) -> None:
    """Send nine bad lines, or one, for each good one; read every answer or none."""
    lines = client.chance.choice([b"\n" * 9 + b"TIME\r\n", b"\nTIME\r\n"])
    async with await client.connect_either() as stream, trio.open_nursery() as nursery:
        if client.chance.random() < 0.5:
            nursery.start_soon(_read, stream)
        for _ in range(20):
            await stream.send_all(lines * 500)
        nursery.cancel_scope.cancel()


async def pipelines_in_a_task(client: Client) -> None:
    """Send a bad line, which gives the client its own task, then requests; read every answer."""
    async with await client.connect_either() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(_read, stream)
        await stream.send_all(b"x\r\n")
        for _ in range(20):
            await stream.send_all(REQUESTS)
        nursery.cancel_scope.cancel()


async def replays_a_hello(client: Client) -> None:
    """Send a TLS hello of random bytes, which is cheap to send."""
    async with (await client.connect_tls()).transport_stream as stream:
        await stream.send_all(TLS_HELLO[:5] + client.chance.randbytes(600))
        await _read(stream)


async def breaks_off(client: Client) -> None:
    """Send half a line, and end the sending side."""
    async with await client.connect() as stream:
        await stream.send_all(b"TIME\r\nTIM")
        await stream.send_eof()
        await _read(stream)


async def never_reads(client: Client) -> None:
    """Send requests without end, and read no answer."""
    async with await client.connect_either(receive_buffer=SMALL_BUFFER) as stream:
        while True:
            await stream.send_all(REQUESTS)


async def resets(client: Client) -> None:
    """Reset before, during or after the answer."""
    stream = await client.connect_either()
    before = client.chance.choice([b"", b"TI", b"TIME\r\n", REQUESTS, b"TIME\r\nTI"])
    try:
        if before:
            await stream.send_all(before)
        await trio.sleep(client.chance.choice([0, 0.01]))
    finally:
        transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        reset_on_close(transport)
        transport.socket.close()


async def says_nothing(client: Client) -> None:
    """Connect and send nothing."""
    async with await client.connect() as stream:
        await _read(stream)


async def shakes_half_a_hand(client: Client) -> None:
    """Begin a TLS handshake, or send something else in its place, and wait."""
    async with (await client.connect_tls()).transport_stream as stream:
        await stream.send_all(client.chance.choice([TLS_HELLO, b"TIME\r\n", b"\x16"]))
        await _read(stream)


async def floods_connections(client: Client) -> None:
    """Hold as many connections as the server allows from one address."""
    async with trio.open_nursery() as nursery:

        async def hold(client: Client) -> None:
            async with await client.connect() as stream:
                await stream.send_all(b"TIME\r\n")
                await _read(stream)

        for _ in range(200):
            nursery.start_soon(_bear, hold, client)


async def floods_requests(client: Client) -> None:
    """Send many more requests than one source may send, and read each answer."""
    async with await client.connect() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(_read, stream)
        for _ in range(50):
            await stream.send_all(REQUESTS)
        await stream.send_eof()


async def is_denied(client: Client) -> None:
    """Connect from a denied network. It must not get a byte."""
    async with await client.connect() as stream:
        await stream.send_all(b"TIME\r\n")
        if data := await stream.receive_some():
            client.tally.failures[f"a denied source got {data[:20]!r}"] += 1


async def scrapes_slowly(client: Client) -> None:
    """Send a header to the web listener, one byte at a time."""
    async with await client.connect_web() as stream:
        for byte in itertools.cycle(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Long: yes"):
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.1)


async def leaves_the_page(client: Client) -> None:
    """Ask for the content of the live page, and leave."""
    async with await client.connect_web() as stream:
        await stream.send_all(POLL)
        await trio.sleep(client.chance.uniform(0, 2))


async def guesses_passwords(client: Client) -> None:
    """Request the metrics with a wrong password. It must not get them."""
    word = b64encode(b"soak:" + client.chance.randbytes(6))
    async with await client.connect_web() as stream:
        await stream.send_all(
            b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            b"Authorization: Basic " + word + b"\r\n\r\n"
        )
        if (data := await stream.receive_some()).startswith(b"HTTP/1.1 200"):
            client.tally.failures["a wrong password opened the metrics"] += 1
        while data:
            data = await stream.receive_some()


# The number of clients of each kind, and their longest pause between visits, in seconds.
HOSTILE = {
    drips: (40, 0.5),
    never_ends_its_line: (1, 2.0),
    babbles: (3, 0.1),
    saves_its_error_budget: (3, 1.0),
    pipelines_in_a_task: (3, 1.0),
    replays_a_hello: (3, 0.5),
    breaks_off: (2, 0.2),
    never_reads: (1, 4.0),
    resets: (8, 0.1),
    says_nothing: (5, 1.0),
    shakes_half_a_hand: (5, 0.5),
    floods_connections: (1, 1.0),
    floods_requests: (1, 2.0),
    is_denied: (2, 0.1),
    scrapes_slowly: (10, 0.5),
    leaves_the_page: (3, 0.5),
    guesses_passwords: (2, 0.3),
}


async def repeat_until_cancelled(visit: Visit, client: Client, rest: float) -> None:
    """Repeat a visit until cancelled."""
    while True:
        await _bear(visit, client)
        await trio.sleep(client.chance.uniform(0, rest))


async def _bear(visit: Visit, client: Client) -> None:
    try:
        await visit(client)
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the server refused, closed or reset it, as it should


async def _read(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass
