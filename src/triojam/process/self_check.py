"""The server asks itself for the time through its own listening sockets, as a client does.

The server recognizes its own connection by the address that the kernel reports at the accept. The client's
socket is bound to that address before it connects, so no other client can have it. If the connection was not
accepted in time, the socket stays open until it is: otherwise the port would be free for another client, or
the server would take its own late connection for a client's.
"""

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress

import trio

from triojam.core.addresses import endpoint, format_address
from triojam.core.protocol import REQUEST, read_jam
from triojam.core.reasons import SelfCheck

_JAM_SIZE = len(b"JAM hh:mm:ss\r\n")

# Where to reach a socket that listens on all addresses. A machine with IPv6 switched off has no ::1, but it
# can listen on [::]; clients then reach that socket over IPv4.
_LOOPBACK = {"0.0.0.0": ["127.0.0.1"], "::": ["::1", "127.0.0.1"]}  # noqa: S104  # to connect, not to listen

# The most connections that wait to be accepted. A service manager kills the server after fewer failures.
MOST_WAITING = 8


class OwnClient:
    """The server's own client.

    listening: the addresses to ask. own: has the endpoint of each connection from before it is opened until
        a listener accepts it, and removes it. A server that is full, or that denies its own machine, must
        admit these; otherwise its supervisor would take it for broken.
    """

    def __init__(self, listening: Iterable[tuple[str, int]], own: set[tuple[str, int]]) -> None:
        self._listening = list(listening)
        self._own = own
        self._waiting: dict[tuple[str, int], socket.socket] = {}

    async def ask(self, within: float) -> tuple[SelfCheck, str]:
        """Ask each listening address for the time; return the result, and what the first failure was.

        within: seconds for all of them.
        """
        self._forget_accepted()
        where = ""
        with trio.move_on_after(within):
            for host, port in self._listening:
                where = format_address((host, port))
                try:
                    answer = await self._ask(_LOOPBACK.get(host, [host]), port)
                except OSError as exc:
                    return SelfCheck.CONNECTION, f"{where}: {exc.strerror or exc}"
                if read_jam(answer) is None:
                    return SelfCheck.WRONG_ANSWER, f"{where}: not the time: {answer!r}"
            return SelfCheck.SUCCESS, ""
        return SelfCheck.TIMEOUT, f"{where}: nothing within {within:g} s"

    def close(self) -> None:
        """Close the connections that were not accepted."""
        while self._waiting:
            self._close_oldest()

    async def _ask(self, hosts: list[str], port: int) -> bytes:
        host, *others = hosts
        try:
            sock = _bound_to(host)
        except OSError as exc:
            if others and exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return await self._ask(others, port)
            raise
        client = endpoint(sock.getsockname())
        self._own.add(client)
        try:
            return await _converse(sock, port)
        except trio.Cancelled:
            if _is_connected(sock):
                self._waiting[client] = sock
            raise
        finally:
            if client not in self._waiting:
                self._own.discard(client)
                sock.close()

    def _forget_accepted(self) -> None:
        for client in self._waiting.keys() - self._own:
            self._waiting.pop(client).close()
        if len(self._waiting) >= MOST_WAITING:
            self._close_oldest()

    def _close_oldest(self) -> None:
        client = next(iter(self._waiting))
        self._own.discard(client)
        self._waiting.pop(client).close()


def _bound_to(host: str) -> socket.socket:
    """Make a socket with an address that the kernel chooses. host: an IP address."""
    family, kind, _, _, address = socket.getaddrinfo(
        host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


async def _converse(sock: socket.socket, port: int) -> bytes:
    """Connect to a port of the address that the socket has, and ask."""
    host, _, *scope = sock.getsockname()
    with suppress(BlockingIOError):
        sock.connect((host, port, *scope))
    await trio.lowlevel.wait_writable(sock)
    sock.send(REQUEST)
    answer = b""
    while len(answer) < _JAM_SIZE:
        await trio.lowlevel.wait_readable(sock)
        if not (data := sock.recv(_JAM_SIZE)):
            break
        answer += data
    return answer


def _is_connected(sock: socket.socket) -> bool:
    """Whether the kernel has opened the connection. If not, no listener will accept it after a close."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
