"""Accepting clients: what is done about errors and about the cap, and the lane's listening sockets."""

import errno
import select
import socket
from collections.abc import Iterable
from contextlib import suppress

from triojam.admission import ANYONE, Admission, Source
from triojam.counters import Counters
from triojam.protocol import REFUSALS
from triojam.reasons import AcceptError, Refusal

# How long accepting rests after an error that does not go away by itself, such as EMFILE, in seconds. Trio's
# serve_listeners takes the same time, but would count nothing and log a traceback each time.
ACCEPT_PAUSE = 0.1

# What one turn accepts at most from one listening socket.
ACCEPTS_AT_ONCE = 64
# The last turns before a listening socket is closed; no queue is longer by default (listen(2), SOMAXCONN).
LAST_TURNS = 4096 // ACCEPTS_AT_ONCE

NOTSENT_BYTES = 16 * 1024

# How much of what a refused client has already sent is read away.
_UNREAD_BYTES = 4096

# The queued connection was at fault, not the server (accept(2), "Error handling"): try the next one.
_NEXT_CONNECTION = frozenset({
    errno.ECONNABORTED, errno.ECONNRESET, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT,
})  # fmt: skip


def count_accept_error(counters: Counters, exc: OSError) -> bool:
    """Count a failed accept; return whether accepting must pause, for the next one would fail as well."""
    name = errno.errorcode.get(exc.errno or 0, "")
    known = AcceptError(name) if name in AcceptError.__members__ else AcceptError.OTHER
    counters.accept_errors[known] += 1
    return exc.errno not in _NEXT_CONNECTION


def admit(
    counters: Counters,
    admission: Admission,
    sock: socket.socket,
    address: tuple[str, int],
    *,
    tell: bool = True,
) -> Source | None:
    """Count an accepted connection and return its source.

    One that is not admitted is told why, as far as that is said, and closed without waiting for the client;
    None is returned. Who may not connect at all is not told that the server is full either. Without `tell`
    nobody is told.
    """
    host, port = address[:2]
    if (host, port) in admission.own:
        counters.opened()
        return ANYONE
    refusal = admission.refusal(host)
    if refusal is None and counters.connections_open >= counters.connections_limit:
        refusal = Refusal.BUSY
    if refusal is None:
        counters.opened()
        return admission.enter(host)
    counters.refused(refusal)
    with sock, suppress(OSError):
        if not (tell and (text := REFUSALS[refusal])):
            return None
        sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
        sock.send(text)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(_UNREAD_BYTES)  # closing with unread input would make a reset of the answer
    return None


class AcceptQueues:
    """Listening sockets, which it owns, watched by an epoll.

    sockets: by descriptor. paused_until: when an accept error was such that accepting rests, else None.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        epoll: "select.epoll",
        counters: Counters,
        admission: Admission,
    ) -> None:
        self.sockets = {sock.fileno(): sock for sock in sockets}
        self.paused_until: float | None = None
        self._epoll = epoll
        self._counters = counters
        self._admission = admission
        for sock in self.sockets.values():
            sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
            # Accepted sockets inherit it. An answer is never worth waiting to fill a segment.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # As little as Trio's streams have: what a client does not take must not pile up in the kernel.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        self.resume()

    def accept(self, listening: int, now: float) -> list[tuple[int, Source]]:
        """Return the next clients queued there, counted as opened: non-blocking descriptors, and sources."""
        accepted: list[tuple[int, Source]] = []
        self._accept_some(listening, now, accepted)
        return accepted

    def _accept_some(self, listening: int, now: float, accepted: list[tuple[int, Source]]) -> bool:
        """Add the next clients; return whether there may be more."""
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                client, address = self.sockets[listening].accept()
            except BlockingIOError:
                return False
            except OSError as exc:
                if count_accept_error(self._counters, exc):
                    self.pause(now + ACCEPT_PAUSE)
                    return False
                continue
            if (source := admit(self._counters, self._admission, client, address)) is not None:
                client.setblocking(False)  # noqa: FBT003  # the standard library's signature
                accepted.append((client.detach(), source))
        return True

    def accept_all(self, now: float) -> list[tuple[int, Source]]:
        """Empty the queues."""
        accepted: list[tuple[int, Source]] = []
        for listening in self.sockets:
            for _ in range(LAST_TURNS):
                if not self._accept_some(listening, now, accepted):
                    break
        return accepted

    def resume(self) -> None:
        """Accept, or accept again. Raises OSError if the system has no room to watch for clients."""
        for listening in self.sockets:
            with suppress(FileExistsError):  # the first of two, at an attempt that failed at the second
                self._epoll.register(listening, select.EPOLLIN)
        self.paused_until = None

    def close(self) -> None:
        """Close the listening sockets; the kernel resets what is queued on those that nobody shares."""
        self.pause(0.0)
        for sock in self.sockets.values():
            sock.close()
        self.sockets.clear()

    def pause(self, until: float) -> None:
        """Leave clients in the queues for now."""
        if self.paused_until is None:
            for listening in self.sockets:
                self._epoll.unregister(listening)
        self.paused_until = until
