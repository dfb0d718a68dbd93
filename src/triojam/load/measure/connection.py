"""One connection of a load: the bytes still to be sent, and the socket."""

import errno
import os
import socket
import ssl
from collections import deque
from collections.abc import Iterable

from triojam.load.measure.checker import AnswerChecker
from triojam.load.measure.poller import monotonic
from triojam.load.measure.tls import Tls, TlsError
from triojam.load.plan import Kind

RECEIVE_BYTES = 64 * 1024

Address = tuple[str | int, ...]
# A connection is broken: the causes by which that is counted are those of `cause_of`.
Broken = (OSError, TlsError)


class Connection:
    """A connection to the server, which may still be in progress, or closed.

    starts: from when the latency of each request in flight counts; empty while the connection is idle. sent:
    when bytes were last sent. moved: from when the patience with the first request counts: bytes were last
    sent, or the answer before it came. outbox: the pieces to send. connected: whether any byte of a request
    was sent. proven: whether an answer has arrived. blocked: whether the kernel's buffer is full. refusals:
    how many times in a row the server has refused a connection in this place.

    For the loop: events, what is to be done; arrived, when that was known; doubt, for how long it may have
    been there before. parting: whether the server may be about to close it.
    """

    __slots__ = (
        "_midline", "_pending", "_tls", "arrived", "blocked", "checker", "connected", "doubt", "events",
        "is_open",        "moved", "outbox", "parting", "proven", "refusals", "sent", "sock", "starts",
    )  # fmt: skip

    def __init__(self, checker: AnswerChecker, refusals: int = 0) -> None:
        self.checker = checker
        self.refusals = refusals
        self.connected = self.proven = self.blocked = self.parting = self._midline = False
        self.outbox: deque[bytes] = deque()
        self.starts: list[float] = []
        self.moved = self.sent = self.arrived = self.doubt = 0.0
        self.events = 0
        self.is_open = False
        self._pending = b""
        self._tls: Tls | None = None

    def open(self, address: Address, context: ssl.SSLContext | None, name: str) -> socket.socket:
        """Begin to connect. Raises Broken; then it must be closed."""
        family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
        if context is not None:
            self._tls = Tls(context, name)
            self._pending = self._tls.replies()
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.is_open = True
        self.sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        return self.sock

    def close(self) -> None:
        """Close the socket, and forget what is not sent."""
        if self.is_open:
            self.sock.close()
            self.is_open = False
        self.outbox.clear()
        self._pending = b""

    def request(self, kinds: Iterable[Kind], starts: list[float], now: float) -> None:
        """Add requests whose latency counts from these times; lines that are not split become one piece."""
        self.starts, self.moved = starts, now
        piece: list[bytes] = []
        for start, kind in zip(starts, kinds, strict=False):
            self.checker.sent(start, now, 1, wants_time=kind.wants_time)
            if kind.cut:
                self.outbox.append(b"".join([*piece, kind.line[: kind.cut]]))
                piece = [kind.line[kind.cut :]]
            else:
                piece.append(kind.line)
        self.outbox.append(b"".join(piece))

    def request_same(self, kind: Kind, starts: list[float], now: float) -> None:
        """Add requests of one kind whose latency counts from now: the same as `request`, but faster."""
        self.starts, self.moved = starts, now
        self.outbox.append(kind.line * len(starts))
        self.checker.sent(now, now, len(starts), wants_time=kind.wants_time)

    def send(self) -> None:
        """Send the next piece, or the part of it for which the kernel has room. Raises Broken."""
        if self._tls is not None:
            self._send_encrypted(self._tls)
            return
        piece = self.outbox.popleft()
        try:
            taken = self.sock.send(piece)
        except OSError as exc:
            self.outbox.appendleft(piece)
            if exc.errno not in (errno.EAGAIN, errno.ENOTCONN):
                raise
            self.blocked = True
            return
        self.moved = self.sent = monotonic()  # this process may have stood still before
        self.connected = True
        self._midline = not piece.endswith(b"\n", 0, taken)
        self.blocked = taken < len(piece)
        if self.blocked:
            self.outbox.appendleft(piece[taken:])

    def _send_encrypted(self, tls: Tls) -> None:
        """Send the rest of the records before; if there is none and the handshake is done, the next piece."""
        if not self._pending and tls.ready and self.outbox:
            piece = self.outbox.popleft()
            self._midline = not piece.endswith(b"\n")
            self._pending = tls.encrypt(piece)
            self.connected = True
        if not self._pending:
            self.blocked = False
            return
        try:
            taken = self.sock.send(self._pending)
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ENOTCONN):
                raise
            taken = 0
        if taken:
            self.moved = self.sent = monotonic()
        self._pending = self._pending[taken:]
        self.blocked = bool(self._pending)

    def receive(self) -> tuple[bytes, bool, bool]:
        """Return what has arrived, whether the stream has ended, and whether there may be more.

        Raises Broken.
        """
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return b"", False, False
        more = len(data) == RECEIVE_BYTES
        if self._tls is None or not data:
            return data, not data, more
        plain, ended = self._tls.decrypt(data)
        self._pending += self._tls.replies()
        return plain, ended, more

    @property
    def may_send(self) -> bool:
        """Whether there is something to send, and no handshake under way that must come first."""
        return bool(self._pending or (self.outbox and (self._tls is None or self._tls.ready)))

    def forget_unsent(self) -> None:
        """Drop the pieces of which no byte was sent."""
        self.outbox.clear()

    def unsent(self) -> list[float]:
        """Return the starts of the requests of which no byte was sent."""
        lines = sum(piece.count(b"\n") for piece in self.outbox) - self._midline
        return self.starts[-lines:] if lines > 0 else []


def cause_of(exc: OSError | TlsError) -> str:
    """Return the cause by which a failure is counted."""
    if isinstance(exc, TlsError):
        return str(exc)
    if exc.errno in (errno.ECONNRESET, errno.EPIPE):
        return "reset"
    if exc.errno == errno.EADDRNOTAVAIL:
        return "no local port is free"
    return os.strerror(exc.errno or errno.EIO).lower()
