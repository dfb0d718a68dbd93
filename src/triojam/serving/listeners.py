"""Accepting: one bounded step for both paths, with its errors and refusals, and the portable path's listener.

A step takes up to `ACCEPTS_AT_ONCE` clients from one accept queue. `ClientListener` serves the portable path
and the TLS port, `AcceptQueues` the fast lane.
"""

import errno
import select
import selectors
import socket
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import trio

from triojam.core.admission import ANYONE, Source
from triojam.core.counters import Counters
from triojam.core.protocol import REFUSALS
from triojam.core.reasons import AcceptError, Disconnect
from triojam.serving.client import Client
from triojam.serving.service import Service
from triojam.serving.streams import RECEIVE_BYTES, TcpStream

# How long accepting rests after an error that does not go away by itself, such as EMFILE, in seconds. Trio's
# serve_listeners takes the same time, but would count nothing and log a traceback each time.
ACCEPT_PAUSE = 0.1

# What one turn accepts at most from one listening socket.
ACCEPTS_AT_ONCE = 32
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

# One that needs no descriptor of its own: there may be none left.
QueueSelector = getattr(selectors, "PollSelector", selectors.SelectSelector)

# How long a flood of new connections may keep the accept queue from being empty, in seconds.
LAST_ACCEPTS = 1.0


class Newcomer(NamedTuple):
    """A client that was admitted, and counted as opened. sock: non-blocking. address: the client's."""

    sock: socket.socket
    address: tuple[Any, ...]
    source: Source


class Accepted(NamedTuple):
    """What one step took from a queue.

    clients: those that were admitted. more: whether there may be others.
    failed: whether accepting must pause, for the next attempt would fail as well.
    """

    clients: list[Newcomer]
    more: bool
    failed: bool


def prepare(sock: socket.socket) -> None:
    """Set on a socket what clients need. Where listening sockets pass it on, it is set on those."""
    sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
    # An answer is sent at once, not kept back to fill a segment.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform != "win32":
        # As little as Trio's streams have: what a client does not take must not pile up in the kernel.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)


def accept_some(listening: socket.socket, service: Service, *, tell: bool = True) -> Accepted:
    """Take the next clients from a queue. No error leaves, only its count.

    tell: whether those that are not admitted are told why.
    """
    clients: list[Newcomer] = []
    for _ in range(ACCEPTS_AT_ONCE):
        try:
            client, address = listening.accept()
        except BlockingIOError:
            return Accepted(clients, more=False, failed=False)
        except OSError as exc:
            if _count_error(service.counters, exc):
                return Accepted(clients, more=False, failed=True)
            continue
        if (source := _admit(client, address, service, tell=tell)) is not None:
            if sys.platform == "linux":  # the rest is inherited (tcp(7))
                client.setblocking(False)  # noqa: FBT003  # the standard library's signature
            else:
                prepare(client)
            clients.append(Newcomer(client, address, source))
    return Accepted(clients, more=True, failed=False)


def _count_error(counters: Counters, exc: OSError) -> bool:
    """Count a failed accept; return whether accepting must pause."""
    name = errno.errorcode.get(exc.errno or 0, "")
    known = AcceptError(name) if name in AcceptError.__members__ else AcceptError.OTHER
    counters.accept_errors[known] += 1
    return exc.errno not in _NEXT_CONNECTION


def _admit(sock: socket.socket, address: tuple[Any, ...], service: Service, *, tell: bool) -> Source | None:
    """Count an accepted connection and return its source.

    One that is not admitted is told why, as far as that is said, and closed without waiting for the client;
    None is returned. A denied client gets no reply, even when the server is full.
    """
    counters, admission = service.counters, service.admission
    host, port = address[:2]
    if (host, port) in admission.own:
        counters.opened()
        return ANYONE
    full = counters.connections_open >= counters.connections_limit
    refusal = admission.refusal(host, full=full)
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

    def __init__(self, sockets: Iterable[socket.socket], epoll: "select.epoll", service: Service) -> None:
        self.sockets = {sock.fileno(): sock for sock in sockets}
        self.paused_until: float | None = None
        self._epoll = epoll
        self._service = service
        for sock in self.sockets.values():
            prepare(sock)
        self.resume()

    def accept(self, listening: int, now: float) -> Accepted:
        """Take the next clients queued there."""
        accepted = accept_some(self.sockets[listening], self._service)
        if accepted.failed:
            self.pause(now + ACCEPT_PAUSE)
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


class DrainingListener(trio.abc.Listener[Client]):
    """A listener that is told to come to its end before it is closed: closing resets what is queued."""

    @abstractmethod
    async def drain(self) -> None:
        """Leave nobody behind who has connected, while another task goes on calling `accept`."""


class ClientListener(DrainingListener):
    """Accepts clients from one listening socket, which it owns.

    tell: whether those that are not admitted are told why.
    shared: another process has the socket, too, and sees to it that who is queued will be served.
    """

    def __init__(
        self, sock: socket.socket, service: Service, *, tell: bool = True, shared: bool = False
    ) -> None:
        prepare(sock)
        self.socket = sock
        self._service = service
        self._tell = tell
        self._shared = shared
        self._accepted: deque[Client] = deque()

    async def accept(self) -> Client:
        """Return the next admitted client, counted as opened. No accept error leaves, only its count.

        Raises trio.ClosedResourceError once the listener is closed.

        Those that were queued together are returned one after the other without a checkpoint between them, so
        that `trio.serve_listeners` starts them all in one turn. With one client a turn, a newcomer would wait
        for as many turns as there are clients before it. A turn has `accepting.ACCEPTS_AT_ONCE` at most.
        """
        while not self._accepted:
            if self.socket.fileno() == -1:
                raise trio.ClosedResourceError("this listener was closed")
            await trio.lowlevel.wait_readable(self.socket)
            if self._accept_turn() and not self._accepted:  # those that were admitted do not wait
                await trio.sleep(ACCEPT_PAUSE)
        return self._accepted.popleft()

    async def drain(self) -> None:
        """Wait until nothing is queued, or, where others will serve it, for nothing."""
        if self._shared:
            return
        with QueueSelector() as queue, trio.move_on_after(LAST_ACCEPTS):
            queue.register(self.socket.fileno(), selectors.EVENT_READ)
            await trio.lowlevel.checkpoint()
            while queue.select(timeout=0):
                await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the listening socket; the kernel resets what is queued on it."""
        if self.socket.fileno() != -1:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        while self._accepted:
            self._accepted.popleft().close(Disconnect.DRAIN)
        await trio.lowlevel.checkpoint()

    def _accept_turn(self) -> bool:
        """Accept what one turn may; return whether it failed in a way that lasts."""
        accepted = accept_some(self.socket, self._service, tell=self._tell)
        now = trio.current_time()
        for each in accepted.clients:
            client = Client(self._service, TcpStream(each.sock, each.address), each.source, now)
            try:
                first = client.stream.receive_now(RECEIVE_BYTES)
            except trio.BrokenResourceError:
                client.close(Disconnect.RESET)
                continue
            if first == b"":  # a probe, which is gone already: not worth a task
                client.close(Disconnect.EOF)
                continue
            client.received = first or b""
            self._accepted.append(client)
        return accepted.failed
