"""A time server that does anything, for fuzzing clients: it follows a script on real sockets.

It has no thread and no task: `step` does what can be done by a given time. On loopback, what one side sends
is at once in the buffer of the other, so time needs to pass only where a script or a client waits.
"""

import itertools
import os
import re
import select
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from math import inf
from typing import TypeVar

import trustme

from tests.helpers.sockets import reset_on_close
from triojam.client.time_of_day import DAY, format_second
from triojam.core.protocol import TIME
from triojam.core.reasons import Refusal, Rejection

T = TypeVar("T")

# Not a port that the kernel gives to clients: a client could connect to itself.
PORT = 4500
# In seconds. "now" and "old" in a fragment stand for this time and one that is ten seconds old.
PAUSES = (0.001, 0.01, 0.06, 0.4, 2.5, 30.0)
FRAGMENTS = (
    *(b"JAM now\r\n", b"JAM now\r\n" * 3, b"JAM now\r\n" * 20, b"JAM old\r\n", b"JAM 24:00:00\r\n"),
    *(b"JAM now\n", b"JAM", b" now\r\n", b"JAM now\r", b"\n", b"\r\n", b"x" * 600, b"\0", b"\xff\n"),
    *(b"ERROR", b" bad_command: x\r\n", b"ERROR bad_command: x\r\n" * 9, b"ERROR bad_command: x\n"),
    *(b"ERROR x\r\n", b"JAM now\r\nERROR busy: x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    *(b"\x15\x03\x03\x00\x02\x02\x28", b"\x16\x03\x03\x00\x04\x0e\x00\x00\x00"),
    *(f"ERROR {reason.value}: x\r\n".encode() for reason in (*Rejection, *Refusal)),
)


class Do(IntEnum):
    """What a connection does next."""

    ANSWER = 0
    ANSWER_ALL = 1
    SEND = 2
    SEND_BYTES = 3
    SEND_RAW = 4  # not encrypted
    SEND_URGENT = 5
    WAIT = 6
    PAUSE = 7
    STOP_READING = 8
    HALF_CLOSE = 9
    CLOSE = 10
    RESET = 11
    END_TLS = 12
    REFUSE = 13
    REPEAT = 14
    NEXT = 15  # the following actions are those of the next connection


# How many different numbers may follow an action.
NUMBERS = {
    Do.ANSWER: 20, Do.SEND: len(FRAGMENTS), Do.SEND_BYTES: 8, Do.SEND_RAW: len(FRAGMENTS),
    Do.SEND_URGENT: len(FRAGMENTS), Do.WAIT: 40, Do.PAUSE: len(PAUSES), Do.REFUSE: len(PAUSES),
}  # fmt: skip
MOST_ACTIONS = 200
# A client has fewer connections at once; older ones, which the server perhaps does not read, are closed.
MOST_OPEN = 20
REPEAT_PAUSE = 0.001

Action = tuple[Do, int, bytes]


_numbers = itertools.count()


def free_address() -> tuple[str, int]:
    """Return an address on loopback that no other process uses, and that this one has not used for long."""
    process = os.getpid()
    return f"127.{process // 250 % 250 + 1}.{process % 250 + 1}.{next(_numbers) % 250 + 1}", PORT


class Reader:
    """Takes numbers and choices from an input; behind its end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = deque(data)

    def __bool__(self) -> bool:
        return bool(self._data)

    def below(self, limit: int) -> int:
        """Return a number from 0 to `limit` - 1."""
        return (self._data.popleft() if self._data else 0) % limit

    def one_of(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[self.below(len(choices))]

    def bytes(self, count: int) -> bytes:
        """Return up to `count` bytes."""
        return bytes(self._data.popleft() for _ in range(min(count, len(self._data))))


def read_scripts(reader: Reader) -> list[list[Action]]:
    """Read the script of each connection; further connections begin with the first again."""
    scripts: list[list[Action]] = [[]]
    for _ in range(MOST_ACTIONS):
        if not reader:
            break
        action = reader.one_of(tuple(Do))
        number = reader.below(NUMBERS[action]) if action in NUMBERS else 0
        if action == Do.NEXT:
            scripts.append([])
        else:
            scripts[-1].append((action, number, reader.bytes(number + 1) if action == Do.SEND_BYTES else b""))
    return scripts


def is_honest(scripts: list[list[Action]]) -> bool:
    """Whether each connection only gives right answers."""
    return all(script and script[0][0] == Do.ANSWER_ALL for script in scripts)


@cache
def authority() -> trustme.CA:
    """Return the authority of the server's certificate."""
    return trustme.CA()


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost").configure_cert(context)
    return context


class _Tls:
    """The server's side of TLS. After an error it is silent."""

    def __init__(self) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context().wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = b""
        self._ready = self._broken = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what these records say, and what is to be sent."""
        self._incoming.write(data)
        pieces = []
        replies = b""
        try:
            if not self._ready:
                self._tls.do_handshake()
                self._ready = True
                replies = self.give(b"")
            while piece := self._tls.read(65536):
                pieces.append(piece)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError:
            self._broken = True
        return b"".join(pieces), replies + self._outgoing.read()

    def give(self, data: bytes) -> bytes:
        """Return the records of some bytes; before the end of the handshake they wait."""
        self._unsent += data
        if self._ready and self._unsent and not self._broken:
            with suppress(ssl.SSLError):
                self._tls.write(self._unsent)
            self._unsent = b""
        return self._outgoing.read()

    def end(self) -> bytes:
        """Return the record that ends TLS."""
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        return self._outgoing.read()


@dataclass
class _Connection:
    """One connection. sent, received: the bytes inside of TLS. refuses: for how long new ones are refused."""

    sock: socket.socket
    script: list[Action]
    tls: _Tls | None
    sent: bytes = b""
    received: bytes = b""
    place: int = 0
    began: float | None = None
    answered: int = 0
    waited: int = 0
    reads: bool = True
    refuses: float = 0.0
    is_open: bool = True
    outbox: bytes = b""

    def step(self, now: float, base: float) -> float:
        """Do all that can be done; return the time of the next action, or inf."""
        try:
            self._read()
            for _ in range(MOST_ACTIONS):
                self._flush()
                if not self.is_open or self.outbox or self.place >= len(self.script):
                    return inf
                if (due := self._act(now, base)) is not None:
                    return due
                self.place, self.began = self.place + 1, None
        except OSError:
            self.close()
            return inf
        return now + REPEAT_PAUSE

    def close(self) -> None:
        """Close the socket."""
        self.is_open = False
        self.sock.close()

    def _act(self, now: float, base: float) -> float | None:
        """Begin or continue an action; return when it may end, or None when it is done."""
        action, number, data = self.script[self.place]
        match action:
            case Do.ANSWER | Do.ANSWER_ALL:
                return self._answer(number + 1 if action == Do.ANSWER else None, now + base)
            case Do.SEND | Do.SEND_BYTES:
                self._send(data if action == Do.SEND_BYTES else _filled(FRAGMENTS[number], now + base))
            case Do.SEND_RAW | Do.SEND_URGENT:
                flags = socket.MSG_OOB if action == Do.SEND_URGENT else 0
                fragment = _filled(FRAGMENTS[number], now + base)
                with suppress(BlockingIOError):
                    taken = self.sock.send(fragment, flags)
                    self.sent += fragment[:taken]
            case Do.WAIT:
                if len(self.received) < self.waited + number + 1:
                    return inf
                self.waited += number + 1
            case Do.PAUSE | Do.REPEAT:
                self.began = now if self.began is None else self.began
                ends = self.began + (PAUSES[number] if action == Do.PAUSE else REPEAT_PAUSE)
                if now < ends:
                    return ends
                if action == Do.REPEAT:
                    self.place = -1
            case _:
                self._do_at_once(action, number)
        return None

    def _do_at_once(self, action: Do, number: int) -> None:
        match action:
            case Do.STOP_READING:
                self.reads = False
            case Do.HALF_CLOSE:
                self.sock.shutdown(socket.SHUT_WR)
            case Do.CLOSE:
                self.close()
            case Do.RESET:
                reset_on_close(self.sock)
                self.close()
            case Do.END_TLS:
                self.outbox += self.tls.end() if self.tls is not None else b""
            case Do.REFUSE:
                self.refuses = PAUSES[number]

    def _answer(self, most: int | None, now: float) -> float | None:
        """Answer the next lines rightly, all of them at once; up to `most`."""
        lines = self.received.count(b"\n") - self.answered
        if self.began is None:
            self.began = self.answered
        if most is not None:
            lines = min(lines, int(self.began) + most - self.answered)
        every = self.received.split(b"\n")[self.answered : self.answered + max(lines, 0)]
        self._send(b"".join(_right_answer(line, now) for line in every))
        self.answered += len(every)
        return inf if most is None or self.answered < self.began + most else None

    def _send(self, data: bytes) -> None:
        self.sent += data
        self.outbox += data if self.tls is None else self.tls.give(data)
        self._flush()

    def _flush(self) -> None:
        if self.outbox and self.is_open:
            with suppress(BlockingIOError):
                self.outbox = self.outbox[self.sock.send(self.outbox) :]

    def _read(self) -> None:
        while self.is_open and self.reads:
            try:
                data = self.sock.recv(65536)
            except BlockingIOError:
                return
            if not data:  # the client has closed it
                self.close()
                return
            if self.tls is not None:
                data, replies = self.tls.take(data)
                self.outbox += replies
            self.received += data


@dataclass
class HostileServer:
    """Listens at `address`, and follows the scripts.

    base: its clock is this many seconds ahead of the time that `step` gets. backlog: of the listener.
    deaf_until: when it accepts the first connection.
    """

    address: tuple[str, int]
    scripts: list[list[Action]]
    tls: bool = False
    base: float = 0.0
    backlog: int = 100
    deaf_until: float = -inf
    connections: list[_Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._epoll = select.epoll()
        self._listener: socket.socket | None = None
        self._open: list[_Connection] = []
        self._opens_at = -inf
        self._due = -inf
        self._listen()

    def fileno(self) -> int:
        """Return a descriptor that is readable when something has come."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close everything."""
        self._stop_listening()
        for connection in self.connections:
            connection.close()
        self._epoll.close()

    @property
    def due(self) -> float:
        """When the next step is due if nothing comes."""
        return self._due

    def step(self, now: float) -> None:
        """Do all that can be done."""
        came = self._epoll.poll(0)
        if not came and now < self._due:
            return
        self._due = inf
        if self._listener is None and now >= self._opens_at:
            self._listen()
        if now >= self.deaf_until:
            self._accept()
        else:
            self._due = self.deaf_until
        for connection in self._open:
            if connection.is_open:
                self._due = min(self._due, connection.step(now, self.base))
                if connection.refuses:
                    self._opens_at, connection.refuses = now + connection.refuses, 0.0
                    self._stop_listening()
        for connection in self._open[:-MOST_OPEN]:
            connection.close()
        self._open = [each for each in self._open if each.is_open]
        if self._listener is None:
            self._due = min(self._due, self._opens_at)

    def _listen(self) -> None:
        self._listener = socket.socket()
        self._listener.settimeout(0)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(self.address)
        self._listener.listen(self.backlog)
        self._epoll.register(self._listener, select.EPOLLIN | select.EPOLLET)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
            script = self.scripts[len(self.connections) % len(self.scripts)]
            self.connections.append(_Connection(sock, script, _Tls() if self.tls else None))
            self._open.append(self.connections[-1])

    def said(self, pattern: bytes) -> int:
        """Return how often something that matches was sent; an urgent byte before it may be lost."""
        return sum(len(re.findall(pattern, each.sent)) for each in self.connections)

    def lines_received(self) -> int:
        """Return how many lines have arrived, parts of lines included."""
        return sum(len(each.received.splitlines()) for each in self.connections)


def _filled(fragment: bytes, now: float) -> bytes:
    for word, moment in ((b"now", now), (b"old", now - 10)):
        fragment = fragment.replace(word, format_second(int(moment % DAY)).encode())
    return fragment


def _right_answer(line: bytes, now: float) -> bytes:
    return _filled(b"JAM now\r\n" if line.startswith(TIME) else b"ERROR bad_command: x\r\n", now)
