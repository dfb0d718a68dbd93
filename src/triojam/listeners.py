"""The portable path: a Trio listener that counts, and refuses what is over the cap before a task exists."""

import errno
import selectors
import socket
from collections.abc import Iterable
from contextlib import suppress

import trio
from trio import socket as tsocket

from triojam.counters import Counters
from triojam.protocol import BUSY
from triojam.reasons import AcceptError, Refusal
from triojam.streams import ClientStream

# How long accepting rests after an error that does not go away by itself, such as EMFILE. Trio's
# serve_listeners takes the same 100 ms, but would count nothing and log a traceback each time.
ACCEPT_PAUSE = 0.1

# How much of what a refused client has already sent is read away.
RECEIVE_BYTES = 4096

# The queued connection was at fault, not the server (accept(2), "Error handling"): try the next one.
_NEXT_CONNECTION = frozenset({
    errno.ECONNABORTED, errno.ECONNRESET, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT,
})  # fmt: skip


class ClientListener(trio.abc.Listener[ClientStream]):
    """Accepts clients from one listening socket, which it owns, up to the limit among the counters."""

    def __init__(self, sock: tsocket.SocketType, *, counters: Counters) -> None:
        self.socket = sock
        self._counters = counters

    async def accept(self) -> ClientStream:
        """Return the next admitted client, counted as opened. No accept error leaves, only its count.

        Raises trio.ClosedResourceError once the listener is closed.
        """
        while True:
            try:
                sock, address = await self.socket.accept()
            except OSError as exc:
                if self.socket.fileno() == -1:
                    raise trio.ClosedResourceError("this listener was closed") from None
                self._counters.accept_errors[_accept_error(exc)] += 1
                if exc.errno not in _NEXT_CONNECTION:
                    await trio.sleep(ACCEPT_PAUSE)
                continue
            if self._counters.connections_open >= self._counters.connections_limit:
                self._counters.refused(Refusal.BUSY)
                _refuse(sock)
                continue
            self._counters.opened()
            return ClientStream(sock, format_address(address))

    async def aclose(self) -> None:
        """Close the listening socket; the kernel resets what is queued on it."""
        self.socket.close()
        await trio.lowlevel.checkpoint()


def _accept_error(exc: OSError) -> AcceptError:
    name = errno.errorcode.get(exc.errno or 0, "")
    return AcceptError(name) if name in AcceptError.__members__ else AcceptError.OTHER


def _refuse(sock: tsocket.SocketType) -> None:
    """Say `busy` and close, without waiting for the client."""
    with socket.socket(fileno=sock.detach()) as plain, suppress(OSError):
        plain.setblocking(False)  # noqa: FBT003  # the standard library's signature
        plain.send(BUSY)
        plain.shutdown(socket.SHUT_WR)
        plain.recv(RECEIVE_BYTES)  # closing with unread input would make a reset of the answer


async def queue_emptied(sockets: Iterable[tsocket.SocketType]) -> None:
    """Wait until nothing is queued on these listening sockets, while other tasks accept from them.

    Closing a listening socket resets the connections that its clients already take for open.
    """
    with selectors.DefaultSelector() as queues:
        for sock in sockets:
            queues.register(sock.fileno(), selectors.EVENT_READ)
        await trio.lowlevel.checkpoint()
        while queues.select(timeout=0):
            await trio.lowlevel.checkpoint()


def format_address(address: tuple[str | int, ...]) -> str:
    """Render a socket address as host:port, an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
