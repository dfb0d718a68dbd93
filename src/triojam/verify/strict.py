"""How triojam's own contract is judged: every row of the table of the protocol, byte by byte."""

import re
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from math import inf

import trio

from triojam.core.protocol import REQUEST, Rules, read_jam
from triojam.core.reasons import Disconnect, Rejection
from triojam.verify.client import Client, End, quoted
from triojam.verify.robust import MANY_REQUESTS
from triojam.verify.subject import Subject
from triojam.verify.vectors import Vector, cuts

JAM = b"JAM hh:mm:ss\r\n"
_JAM = re.compile(rb"JAM ([01]\d|2[0-3]):[0-5]\d:[0-5]\d\r\n")
ERROR_LINES = {reason: Rules().error_line(reason) for reason in Rejection}
GAP = 0.02
CUTS = 4  # in two pieces, besides whole and byte by byte
BATCH = 1000
LINE_SECONDS, IDLE_SECONDS, SEND_SECONDS = 10, 60, 10
EARLY = 0.5


def obeys(*vectors: Vector) -> Callable[[Subject], Awaitable[None]]:
    """Make the judge of rows of the table, however their bytes are cut."""

    async def judge(subject: Subject) -> None:
        ways = [(vector, pieces) for vector in vectors for pieces in some_cuts(vector.sent)]
        await subject.each(ways, lambda way: _follow(subject, *way))

    return judge


def some_cuts(sent: bytes) -> list[list[bytes]]:
    """Return a few cuts of a vector: whole, byte by byte, and in two."""
    whole, single, *halves = cuts(sent)
    return [whole, single, *halves[:: len(halves) // CUTS + 1]]


async def _follow(subject: Subject, vector: Vector, pieces: Sequence[bytes]) -> None:
    client = await subject.open()
    await client.send_pieces(pieces, GAP if len(pieces) == 2 else 0)
    expected = vector.expected(JAM, ERROR_LINES)
    await _expect(client, expected)
    if vector.end is None:  # the connection is still open: one more request is answered
        await client.send(REQUEST)
        expected += JAM
        await _expect(client, expected)
    if vector.end in (None, Disconnect.EOF):
        await client.end_sending()
    end = await client.receive(lambda _data: False)
    await _expect(client, expected)
    if end is End.SILENT:
        raise client.broken("the connection stayed open")


async def _expect(client: Client, expected: bytes) -> None:
    """Receive, and compare all that came. Raises Broken."""
    await client.receive(lambda data: len(data) >= len(expected))
    came = _JAM.sub(JAM, bytes(client.received))
    if came != expected:
        raise client.broken(f"{quoted(came)} came in place of {quoted(expected)}")


async def batch_in_order(subject: Subject) -> None:
    """The times of a batch never go backwards."""
    client = await subject.ask(REQUEST * BATCH)
    await client.receive(lambda data: len(data) >= BATCH * len(JAM))
    lines = bytes(client.received).splitlines(keepends=True)
    seconds = [read_jam(line) for line in lines]
    told = [second for second in seconds if second is not None]
    if len(told) != BATCH:
        raise client.broken(f"{BATCH} requests in one batch got {len(told)} times")
    if sum(later < earlier for earlier, later in pairwise(told)) > (told[-1] < told[0]):
        raise client.broken("the times of one batch go backwards")


async def line_deadline(subject: Subject) -> None:
    """A line that is not finished in time gets an error, although bytes keep coming."""
    client = await subject.ask(b"TI")
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            while await client.send(b"x"):  # noqa: ASYNC110  # it is the bytes that have to come late
                await trio.sleep(1)

        nursery.start_soon(drip)
        with trio.move_on_after(LINE_SECONDS + subject.pace.patience):
            await _receive_to_the_end(client)
        nursery.cancel_scope.cancel()
    passed = trio.current_time() - began
    if bytes(client.received) != ERROR_LINES[Rejection.TIMEOUT] or passed < LINE_SECONDS - EARLY:
        raise client.broken(f"after {passed:.1f} s, no timely error for the unfinished line")


async def idle_deadline(subject: Subject) -> None:
    """A client that sends nothing is closed without a reply."""
    client = await subject.open()
    began = trio.current_time()
    with trio.move_on_after(IDLE_SECONDS + subject.pace.patience):
        await _receive_to_the_end(client)
    passed = trio.current_time() - began
    if client.received or client.end is not End.CLOSED or passed < IDLE_SECONDS - EARLY:
        raise client.broken(f"after {passed:.1f} s, a silent client was not closed without a reply")


async def send_deadline(subject: Subject) -> None:
    """A client that does not take its answers is reset."""
    client = await subject.open_with_small_buffers()
    with trio.move_on_after(SEND_SECONDS + subject.pace.patience):
        while await client.send(MANY_REQUESTS, patience=inf):
            pass
        return
    raise client.broken("a client that does not read its answers was not reset")


async def _receive_to_the_end(client: Client) -> None:
    """Receive until the end of the connection; the caller limits the time."""
    while await client.receive(lambda _data: False) is End.SILENT:
        pass
