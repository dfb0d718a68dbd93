"""Fuzzing the metrics port: any bytes, over TCP and TLS, in pieces, with pauses and ends.

An input is a header of `HEADER` bytes, then the bytes of the client. The header chooses the listener, the end
of the connection, whether the client reads, the cuts and the pauses. Whatever comes, nothing may fail, the
log has no error, and all answers are HTTP/1.1. Afterwards every place is free, and a scrape is answered.
"""

import random
import time
from contextlib import suppress
from functools import cache
from itertools import pairwise

import bcrypt
import h11
import trio
import trio.testing

from tests.fuzz.trio_thread import PATIENCE, TrioThread
from tests.helpers.servers import ClientEnd, raw, reset_on_close
from tests.helpers.web import Web, authorization, parse_first

HEADER = 4
# The listeners. For the last, clients send their bytes to the TLS port without a handshake.
PLAIN, PASSWORDS, TLS, NO_HANDSHAKE = range(4)
# What the client does after its last byte.
HALF_CLOSE, CLOSE, RESET, NOTHING = range(4)
DEAF = 4  # is added to these if the client does not read
# In seconds: shorter than all deadlines, and longer than some or all.
PAUSES = (0.0, 2.0, 6.0, 100.0)
LONG = 100.0
MOST_PIECES = 32
USER, PASSWORD = "alice", "open sesame"


def encode(
    stream: bytes, *, listener: int = PLAIN, end: int = HALF_CLOSE, cut: int = 0, pause: int = 0
) -> bytes:
    """Make an input that sends `stream`. cut: 0 for one piece. pause: an index of PAUSES, for each piece."""
    return bytes([listener, end, cut, pause]) + stream


def try_one(data: bytes) -> None:
    """Run one input on listeners that all inputs share."""
    _world().run(data)


def close() -> None:
    """End the listeners."""
    _world().close()
    _world.cache_clear()


class _World:
    """A loop with one web listener of each kind. Its clock moves only when an input says so."""

    def __init__(self) -> None:
        hashes = {USER.encode(): bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4))}
        self._thread = TrioThread()
        self._webs = [
            self._thread.run(self._start, tls, users)
            for tls, users in ((False, {}), (False, hashes), (True, {}))
        ]

    def run(self, data: bytes) -> None:
        """Run one input; raise what it finds."""
        header, stream = data[:HEADER].ljust(HEADER, b"\0"), data[HEADER:]
        self._thread.run(self._try, *header, stream)

    def close(self) -> None:
        """End the loop."""
        self._thread.close()

    async def _start(self, tls: bool, hashes: dict[bytes, bytes]) -> Web:  # noqa: FBT001  # as in Web
        web = Web(tls=tls, hashes=hashes)
        await self._thread.nursery.start(web.serve)
        await web.scrapes(authorization(USER, PASSWORD))
        return web

    async def _try(self, listener: int, end: int, cut: int, pause: int, stream: bytes) -> None:
        kind, end, deaf = listener & 3, end & 3, bool(end & DEAF)
        web = self._webs[min(kind, TLS)]
        web.events.clear()
        received = bytearray()
        async with trio.open_nursery() as nursery:
            client = await (web.connect_tcp() if kind == NO_HANDSHAKE else web.connect())
            if not deaf:
                nursery.start_soon(_receive, client, received)
            await self._send(client, _cut(stream, cut), PAUSES[pause & 3])
            await trio.testing.wait_all_tasks_blocked()
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await _end(client, end)
            await self._rest(web, client)
            nursery.cancel_scope.cancel()
        if not deaf and kind != NO_HANDSHAKE:
            cut_off = end in (CLOSE, RESET)
            assert are_answers(bytes(received), heads=b"HEAD" in stream, cut_off=cut_off), received
        assert web.failures == 0, "an unexpected exception"
        assert not [event for event in web.events if event["level"] == "error"], web.events
        await web.scrapes(authorization(USER, PASSWORD))
        await web.close_clients()
        await self._rest(web, None)

    async def _send(self, client: ClientEnd, pieces: list[bytes], pause: float) -> None:
        for piece in pieces:
            # An input fits into the buffers of the kernel, so this does not block.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await client.send_all(piece)
            if pause:
                await trio.testing.wait_all_tasks_blocked()
                self._thread.clock.jump(pause)

    async def _rest(self, web: Web, client: ClientEnd | None) -> None:
        """Let time pass until every place is free. If it takes long, the client closes."""
        latest = time.monotonic() + PATIENCE
        rounds = 0
        while web.places:
            assert time.monotonic() < latest, "a place is lost"
            await trio.testing.wait_all_tasks_blocked(0.0005)
            self._thread.clock.jump(LONG)
            await trio.testing.wait_all_tasks_blocked()
            rounds += 1
            if client is not None and rounds == 3:
                await trio.aclose_forcefully(raw(client))
        await trio.testing.wait_all_tasks_blocked()


async def _receive(client: ClientEnd, received: bytearray) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in client:
            received += data


async def _end(client: ClientEnd, end: int) -> None:
    match end:
        case 0:
            await client.send_eof()
        case 1:
            await trio.aclose_forcefully(raw(client))
        case 2:
            reset_on_close(raw(client))
            await trio.aclose_forcefully(raw(client))


def _cut(stream: bytes, cut: int) -> list[bytes]:
    """Cut a stream at positions that depend on `cut`; 0 does not cut."""
    chance = random.Random(cut)
    count = chance.randint(1, MOST_PIECES) if cut else 0
    edges = sorted({0, len(stream), *(chance.randint(0, len(stream)) for _ in range(count))})
    return [stream[start:stop] for start, stop in pairwise(edges)]


def are_answers(data: bytes, *, heads: bool, cut_off: bool) -> bool:
    """Whether these bytes are whole answers. If `cut_off`, the last may be cut.

    heads: whether an answer may be that of a HEAD request.
    """
    if not data:
        return True
    for method in ("GET", "HEAD") if heads else ("GET",):
        try:
            answer, rest = parse_first(data, method)
        except h11.RemoteProtocolError:
            continue
        if answer is None:
            if cut_off:
                return True
        elif are_answers(rest, heads=heads, cut_off=cut_off):
            return True
    return False


@cache
def _world() -> _World:
    return _World()
