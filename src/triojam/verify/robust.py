"""How the robust rules are judged: bytes in pieces, many clients at once, and clients that misbehave."""

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf

import trio

from triojam.core.protocol import REQUEST
from triojam.verify.client import Broken, Client, End
from triojam.verify.subject import Subject
from triojam.verify.vectors import LONG_REQUESTS, ODD_BYTES, Vector

GAP = 0.25  # between two pieces, so that they arrive in two segments
CROWD, CROWDS = 50, 3
DROPPED = 0.9  # a kernel repeats a connection request that was dropped, but only after a second
CONNECTS, CONNECTS_A_TURN, CONNECTS_SECONDS = 1000, 5, 5.0
HOSTILE = 4
BETWEEN_QUESTIONS = 0.15
LATE_IN_A_ROW = 2  # one late answer may be the fault of a busy machine
BAD_LINES, MOST_BAD = b"HELLO\r\n" * 600, 1 << 18
NO_LINE, MOST_OF_A_LINE = b"x" * 4096, 1 << 20
# More than the server's kernel takes until the server has read much of it; the answers to that do not fit
# into the buffers. The requests come slowly, so that reading them costs little.
MANY_REQUESTS, MOST_REQUESTED, PAUSE = REQUEST * 400, 1 << 18, 0.005


async def two_at_once(subject: Subject) -> None:
    """Two requests in one segment get two answers."""
    client = await subject.ask(REQUEST * 2)
    await client.receive_times(2)
    if client.times != 2:
        raise client.broken(f"two requests in one segment got {client.times or 'no'} answer")


async def one_in_pieces(subject: Subject) -> None:
    """A request in pieces gets one answer."""
    await _in_pieces(subject, b"TI", b"M", b"E\r\n")


async def line_end_in_pieces(subject: Subject) -> None:
    """A request whose CR and LF arrive one after the other gets one answer, after its LF."""
    await _in_pieces(subject, b"TIME\r", b"\n")


async def _in_pieces(subject: Subject, *pieces: bytes) -> None:
    client = await subject.open()
    await client.send_pieces(pieces[:-1], GAP)
    with trio.move_on_after(2 * GAP):
        end = await client.receive_times(patient=True)
        if end is End.ENOUGH:
            raise client.broken("the answer came before the end of the line")
    await client.send(pieces[-1])
    end = await client.receive_times()
    if end is not End.ENOUGH:
        raise client.broken(f"a request in {len(pieces)} pieces: {client.why_no_time(end)}")


async def long_lines(subject: Subject) -> None:
    """A request of up to 512 bytes gets one answer."""
    await _answers_each(subject, LONG_REQUESTS)


async def high_bytes(subject: Subject) -> None:
    """A request with bytes beyond ASCII, which are not UTF-8, gets one answer."""
    await _answers_each(subject, ODD_BYTES[:1])


async def _answers_each(subject: Subject, vectors: tuple[Vector, ...]) -> None:
    async def ask(vector: Vector) -> None:
        client = await subject.ask(vector.sent)
        end = await client.receive_times()
        if end is not End.ENOUGH:
            raise client.broken(f"a request of {len(vector.sent)} bytes: {client.why_no_time(end)}")

    await subject.each(vectors, ask)


async def half_close(subject: Subject) -> None:
    """A client that ends its sending side after its request still gets the answer."""
    client = await subject.ask()
    await client.end_sending()
    end = await client.receive_times()
    if end is not End.ENOUGH:
        raise client.broken(f"after the end of the client's sending side, {client.why_no_time(end)}")


async def crowd(subject: Subject) -> None:
    """All of 50 clients that connect at the same moment are answered, several times."""
    for _ in range(CROWDS):
        await _one_crowd(subject)


async def _one_crowd(subject: Subject) -> None:
    socks = _connect_at_once(subject)
    opened: list[trio.socket.SocketType] = []
    failed: list[str] = []

    async def finish(sock: trio.socket.SocketType) -> None:
        await trio.lowlevel.wait_writable(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            failed.append(os.strerror(code).lower())
        else:
            opened.append(sock)

    async def ask(sock: trio.socket.SocketType) -> None:
        try:
            client = await subject.adopt(trio.SocketStream(sock))
        except Broken as exc:
            failed.append(str(exc))
            return
        await client.send(REQUEST)
        end = await client.receive_times(patient=True)
        if end is not End.ENOUGH:
            failed.append(client.why_no_time(end))

    try:
        with trio.move_on_after(DROPPED):
            await _for_each(socks, finish)
        if len(opened) + len(failed) < CROWD:
            missing = CROWD - len(opened) - len(failed)
            raise Broken(
                f"{missing} of {CROWD} connections were not opened within {DROPPED} s: "
                "the backlog was full, and the kernel dropped them"
            )
        await _for_each(opened, ask)
    finally:
        for sock in socks:
            sock.close()
    if failed:
        raise Broken(f"{len(failed)} of {CROWD} clients got no answer: {failed[0]}")


async def _for_each(
    socks: Sequence[trio.socket.SocketType], task: Callable[[trio.socket.SocketType], Awaitable[None]]
) -> None:
    async with trio.open_nursery() as nursery:
        for sock in socks:
            nursery.start_soon(task, sock)


def _connect_at_once(subject: Subject) -> list[trio.socket.SocketType]:
    """Begin all connections before the server can accept the first ones."""
    family = socket.AF_INET6 if len(subject.socket_address) > 2 else socket.AF_INET
    socks = [socket.socket(family, socket.SOCK_STREAM) for _ in range(CROWD)]
    for sock in socks:
        sock.setblocking(False)  # noqa: FBT003  # its only parameter
    for sock in socks:
        code = sock.connect_ex(subject.socket_address)
        if code not in (0, errno.EINPROGRESS):
            for each in socks:
                each.close()
            raise Broken(f"no connection: {os.strerror(code).lower()}")
    return [trio.socket.from_stdlib_socket(sock) for sock in socks]


@dataclass
class Attacker:
    """How far a hostile client is. progress: when the server took bytes last. done: it sends no more."""

    progress: float
    done: bool = False

    async def send_much(self, client: Client, data: bytes, most: int, pause: float = 0) -> None:
        """Send again and again, up to `most` bytes, until the server closes."""
        for _ in range(most // len(data)):
            if not await client.send(data, patience=inf):
                return
            self.progress = trio.current_time()
            await trio.sleep(pause)


Attack = Callable[[Client, Attacker], Awaitable[None]]


async def _survives(subject: Subject, attack: Attack, *, reads: bool = True) -> None:
    """Others are answered in time: until each hostile client is done, or the server takes no more from it."""
    attackers = [Attacker(trio.current_time()) for _ in range(HOSTILE if reads else 1)]

    async def run(attacker: Attacker) -> None:
        with suppress(Broken, trio.BrokenResourceError, trio.ClosedResourceError):
            client = await (subject.open() if reads else subject.open_with_small_buffers())
            await attack(client, attacker)
        attacker.done = True

    late: list[str] = []
    async with trio.open_nursery() as nursery:
        for attacker in attackers:
            nursery.start_soon(run, attacker)
        ends = trio.current_time() + subject.pace.patience
        settled = False
        while len(late) < LATE_IN_A_ROW and not (settled and not late):
            await trio.sleep(BETWEEN_QUESTIONS)
            now = trio.current_time()
            stuck = now - subject.pace.reaction
            settled = now > ends or all(each.done or each.progress < stuck for each in attackers)
            reason = await subject.why_not_answering(subject.pace.reaction)
            late = [*late, reason] if reason else []
        nursery.cancel_scope.cancel()
    if late:
        shown = next(iter(subject.clients), None)
        raise Broken(f"meanwhile another client was not answered: {late[0]}", shown)


async def resets(subject: Subject) -> None:
    """Clients that reset their connection leave the server alive."""

    async def attack(client: Client, _attacker: Attacker) -> None:
        await client.send(REQUEST)
        client.reset()

    await _survives(subject, attack)


async def bad_flood(subject: Subject) -> None:
    """A flood of bad lines delays no other client."""

    async def attack(client: Client, attacker: Attacker) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.discard)
            await attacker.send_much(client, BAD_LINES, MOST_BAD)
            nursery.cancel_scope.cancel()

    await _survives(subject, attack)


async def endless_line(subject: Subject) -> None:
    """A line without an end delays no other client."""

    async def attack(client: Client, attacker: Attacker) -> None:
        await attacker.send_much(client, NO_LINE, MOST_OF_A_LINE)

    await _survives(subject, attack)


async def never_reads(subject: Subject) -> None:
    """A client that never reads its answers delays no other client."""

    async def attack(client: Client, attacker: Attacker) -> None:
        await attacker.send_much(client, MANY_REQUESTS, MOST_REQUESTED, PAUSE)

    await _survives(subject, attack, reads=False)


async def no_leak(subject: Subject) -> None:
    """The server closes its side when a client has gone, and answers after 1,000 connections."""
    client = await subject.ask()
    await client.receive_times()
    await client.end_sending()
    if await client.receive(lambda _data: False) is End.SILENT:
        raise client.broken("the client ended the connection, and the server kept its side open")
    await client.aclose()

    ends = trio.current_time() + CONNECTS_SECONDS
    for place in range(CONNECTS):
        try:
            stream = await subject.open_tcp()
            await trio.aclose_forcefully(stream)
        except Broken as exc:
            raise Broken(f"connection {place + 1} of {CONNECTS}: {exc}") from exc
        # An answer shows that the server has accepted all earlier clients: none waits in its backlog.
        if not place % CONNECTS_A_TURN and (reason := await subject.why_not_answering()):
            raise Broken(f"after {place + 1} of {CONNECTS} connections: {reason}")
        if trio.current_time() > ends:  # a slow server gets fewer connections, and no reset
            return
