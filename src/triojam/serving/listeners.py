"""Accepting: one bounded step for both paths, its errors, and the portable listener.

A step takes up to `ACCEPTS_AT_ONCE` clients from one accept queue. `ClientListener` serves the portable path
and the TLS port; `AcceptQueues` serves the fast lane.
"""

import errno
import select
import selectors
import socket
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import trio

from triojam.core.counters import Counters
from triojam.core.reasons import AcceptError, Disconnect, HandoverCause
from triojam.serving.client import Client
from triojam.serving.newcomers import Newcomer, admit
from triojam.serving.service import Service
from triojam.serving.streams import RECEIVE_BYTES, TcpStream

# The pause after an accept error that persists, such as EMFILE, in seconds. Trio's serve_listeners would
# pause as long, but it would log a traceback each time, and count nothing.
ACCEPT_PAUSE = 0.1

# How many connections one turn accepts at most from one listening socket.
ACCEPTS_AT_ONCE = 32
# The last turns before a listening socket is closed: enough for a full queue with the net.core.somaxconn of
# deploy/sysctl.d.
LAST_TURNS = 16_384 // ACCEPTS_AT_ONCE

NOTSENT_BYTES = 16 * 1024

# The kernel probes a silent peer after 60 s, and closes the connection after four probes in another minute
# without an answer: the peer's machine is gone, and without an idle timeout nothing else would close it. A
# system without one of these options uses its own times.
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}

# The queued connection has failed, not the server (accept(2), "Error handling"): try the next one.
_NEXT_CONNECTION = frozenset({
    errno.ECONNABORTED, errno.ECONNRESET, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT,
})  # fmt: skip

# These need no descriptor for themselves: there may be none left.
QueueSelector = getattr(selectors, "PollSelector", selectors.SelectSelector)

# A flood may keep the accept queue full. So a drain ends after this time, in seconds, and
# LAST_TURNS. In this time alone, a slow machine accepts only a part of a long queue.
LAST_ACCEPTS = 1.0


class Accepted(NamedTuple):
    """The result of one step.

    clients: the admitted clients. waiting: those whose PROXY header is not whole yet.
    more: whether the queue may have others.
    failed: whether accepting must pause, because the next attempt would fail, too.
    """

    clients: list[Newcomer]
    waiting: list[Newcomer]
    more: bool
    failed: bool


def prepare(sock: socket.socket) -> None:
    """Set the socket options of clients; on Linux, accepted sockets inherit them."""
    sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
    # Without Nagle's algorithm, each answer is sent at once.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        with suppress(AttributeError, OSError):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if sys.platform != "win32":
        # The same value as for Trio's streams: answers that a client does not take must not fill the kernel.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)


def accept_some(listening: socket.socket, service: Service, *, tell: bool = True) -> Accepted:
    """Accept the next clients of a queue. Errors are counted, not raised.

    tell: whether refused clients are sent the reason.
    """
    clients: list[Newcomer] = []
    waiting: list[Newcomer] = []
    for _ in range(ACCEPTS_AT_ONCE):
        try:
            client, address = listening.accept()
        except BlockingIOError:
            return Accepted(clients, waiting, more=False, failed=False)
        except OSError as exc:
            if _count_error(service.counters, exc):
                return Accepted(clients, waiting, more=False, failed=True)
            continue
        if (newcomer := admit(client, address, service, tell=tell)) is not None:
            if sys.platform == "linux":  # the rest is inherited (tcp(7))
                client.setblocking(False)  # noqa: FBT003  # the standard library's signature
            else:
                prepare(client)
            if newcomer.relayed is not None and newcomer.relayed.waits:
                waiting.append(newcomer)
            else:
                clients.append(newcomer)
    return Accepted(clients, waiting, more=True, failed=False)


def _make_client(newcomer: Newcomer, service: Service, now: float) -> Client:
    client = Client(service, TcpStream(newcomer.sock, newcomer.address), newcomer.source, now)
    client.relayed = newcomer.relayed
    return client


def _count_error(counters: Counters, exc: OSError) -> bool:
    """Count a failed accept; return whether accepting must pause."""
    name = errno.errorcode.get(exc.errno or 0, "")
    known = AcceptError(name) if name in AcceptError.__members__ else AcceptError.OTHER
    counters.accept_errors[known] += 1
    return exc.errno not in _NEXT_CONNECTION


class AcceptQueues:
    """Listening sockets, which it owns, watched by an epoll.

    handovers: gets the connections whose PROXY header is not whole yet.
    sockets: by descriptor. paused_until: when accepting goes on after an error; None if it is not paused.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        epoll: "select.epoll",
        service: Service,
        handovers: deque[Client],
    ) -> None:
        self.sockets = {sock.fileno(): sock for sock in sockets}
        self.paused_until: float | None = None
        self._epoll = epoll
        self._service = service
        self._handovers = handovers
        for sock in self.sockets.values():
            prepare(sock)
        self.resume()

    def accept(self, listening: int, now: float) -> Accepted:
        """Accept the next clients of one queue."""
        accepted = accept_some(self.sockets[listening], self._service)
        if accepted.failed:
            self.pause(now + ACCEPT_PAUSE)
        if accepted.waiting:
            self._service.counters.handovers[HandoverCause.HEADER] += len(accepted.waiting)
            self._handovers += [_make_client(each, self._service, now) for each in accepted.waiting]
        return accepted

    def resume(self) -> None:
        """Begin to accept, or go on. Raises OSError if epoll cannot watch another socket."""
        for listening in self.sockets:
            with suppress(FileExistsError):  # the attempt before has failed at a later socket
                self._epoll.register(listening, select.EPOLLIN)
        self.paused_until = None

    def close(self) -> None:
        """Close the listening sockets; the kernel resets queued connections, unless the socket is shared."""
        self.pause(0.0)
        for sock in self.sockets.values():
            sock.close()
        self.sockets.clear()

    def pause(self, until: float) -> None:
        """Leave clients in the queues until `resume`."""
        if self.paused_until is None:
            for listening in self.sockets:
                self._epoll.unregister(listening)
        self.paused_until = until


class DrainingListener(trio.abc.Listener[Client]):
    """A listener that is drained before it is closed: closing resets queued connections."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until all queued connections are accepted; another task goes on calling `accept`."""


class ClientListener(DrainingListener):
    """Accepts clients from one listening socket, which it owns.

    tell: whether refused clients are sent the reason.
    shared: another process has the socket, too, and queued clients will be served later.
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
        """Return the next admitted client, counted as opened. Accept errors are counted, not raised.

        Raises trio.ClosedResourceError after the listener is closed.

        There is no checkpoint between the clients of one step, so that `trio.serve_listeners` starts them all
        in one turn. With one client per turn, a new client would wait one turn for each client before it.
        """
        while not self._accepted:
            if self.socket.fileno() == -1:
                raise trio.ClosedResourceError("this listener was closed")
            await trio.lowlevel.wait_readable(self.socket)
            if self._accept_turn() and not self._accepted:  # admitted clients do not wait for the pause
                await trio.sleep(ACCEPT_PAUSE)
        return self._accepted.popleft()

    async def drain(self) -> None:
        """Wait until the queue is empty; do not wait if the socket is shared."""
        if self._shared:
            return
        turns, ends = 0, trio.current_time() + LAST_ACCEPTS
        with QueueSelector() as queue:
            queue.register(self.socket.fileno(), selectors.EVENT_READ)
            await trio.lowlevel.checkpoint()
            while queue.select(timeout=0) and (turns < LAST_TURNS or trio.current_time() < ends):
                await trio.lowlevel.checkpoint()
                turns += 1

    async def aclose(self) -> None:
        """Close the listening socket; the kernel resets queued connections."""
        if self.socket.fileno() != -1:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        while self._accepted:
            self._accepted.popleft().close(Disconnect.DRAIN)
        await trio.lowlevel.checkpoint()

    def _accept_turn(self) -> bool:
        """Accept the clients of one turn; return whether accepting must pause."""
        accepted = accept_some(self.socket, self._service, tell=self._tell)
        now = trio.current_time()
        self._accepted += [_make_client(each, self._service, now) for each in accepted.waiting]
        for each in accepted.clients:
            client = _make_client(each, self._service, now)
            try:
                first = client.stream.receive_now(RECEIVE_BYTES)
            except trio.BrokenResourceError:
                client.close(Disconnect.RESET)
                continue
            if first == b"":  # a probe that is gone already needs no task
                client.close(Disconnect.EOF)
                continue
            client.received = first or b""
            self._accepted.append(client)
        return accepted.failed


async def accept_until(
    stop: trio.Event,
    listener: DrainingListener,
    handle: Callable[[Client], Awaitable[None]],
    clients: trio.Nursery,
    *,
    task_status: trio.TaskStatus[Any],
) -> None:
    """Start a task for each client of a listener, until `stop` is set and its accept queue is empty.

    Reports once it accepts.
    """
    async with trio.open_nursery() as nursery:
        # trio.serve_tcp is open_tcp_listeners and this; between the two, the listeners are ours.
        await nursery.start(partial(trio.serve_listeners, handle, [listener], handler_nursery=clients))
        task_status.started()
        await stop.wait()
        await listener.drain()
        nursery.cancel_scope.cancel()
