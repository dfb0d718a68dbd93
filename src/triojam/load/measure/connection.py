"""One connection of a load: the bytes still to be sent, and the socket."""

import errno
import os
import socket
from collections import deque
from collections.abc import Iterable

from triojam.load.measure.checker import AnswerChecker
from triojam.load.plan import Kind

RECEIVE_BYTES = 64 * 1024


class Connection:
    """A connection to the server, which may still be in progress.

    due: when the requests in flight were due; empty while the connection is idle. moved: when bytes were last
    sent or received. outbox: the pieces to send. connected: whether any byte was sent. proven: whether an
    answer has arrived. blocked: whether the kernel's buffer is full.
    """

    __slots__ = ("_midline", "blocked", "checker", "connected", "due", "moved", "outbox", "proven", "sock")

    def __init__(self, address: tuple[str | int, ...], checker: AnswerChecker) -> None:
        """Begin to connect. Raises OSError."""
        self.checker = checker
        self.connected = self.proven = self.blocked = self._midline = False
        self.outbox: deque[bytes] = deque()
        self.due: list[float] = []
        self.moved = 0.0
        family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self.sock.close()
            raise OSError(code, os.strerror(code))

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self.sock.fileno() < 0

    def request(self, kinds: Iterable[Kind], due: list[float], now: float) -> None:
        """Add requests that were due at these times; lines that are not split become one piece."""
        self.due, self.moved = due, now
        piece: list[bytes] = []
        for when, kind in zip(due, kinds, strict=False):
            self.checker.sent(when, now, 1, wants_time=kind.wants_time)
            if kind.cut:
                self.outbox.append(b"".join([*piece, kind.line[: kind.cut]]))
                piece = [kind.line[kind.cut :]]
            else:
                piece.append(kind.line)
        self.outbox.append(b"".join(piece))

    def request_same(self, kind: Kind, due: list[float], now: float) -> None:
        """Add requests of one kind that are due now: the same as `request`, but faster."""
        self.due, self.moved = due, now
        self.outbox.append(kind.line * len(due))
        self.checker.sent(now, now, len(due), wants_time=kind.wants_time)

    def send(self, now: float) -> None:
        """Send the next piece, or the part of it for which the kernel has room. Raises OSError."""
        piece = self.outbox.popleft()
        try:
            taken = self.sock.send(piece)
        except OSError as exc:
            self.outbox.appendleft(piece)
            if exc.errno not in (errno.EAGAIN, errno.ENOTCONN):
                raise
            self.blocked = True
            return
        self.moved = now
        self.connected = True
        self._midline = not piece.endswith(b"\n", 0, taken)
        self.blocked = taken < len(piece)
        if self.blocked:
            self.outbox.appendleft(piece[taken:])

    def unsent(self) -> list[float]:
        """Return when the requests were due of which no byte was sent."""
        lines = sum(piece.count(b"\n") for piece in self.outbox) - self._midline
        return self.due[-lines:] if lines else []


def cause_of(exc: OSError) -> str:
    """Return the cause by which a failure is counted."""
    if exc.errno in (errno.ECONNRESET, errno.EPIPE):
        return "reset"
    return os.strerror(exc.errno or errno.EIO).lower()
