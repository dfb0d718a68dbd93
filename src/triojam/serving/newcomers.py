"""Connections that were just accepted: whether each is admitted, and which client a proxy relays.

A connection from a proxy begins with a PROXY header. Most headers have arrived when the connection is
accepted; the task of a connection waits for the others (see `handler`).
"""

import socket
from contextlib import suppress
from typing import Any, NamedTuple

import trio

from triojam.core.addresses import endpoint, format_address
from triojam.core.admission import Source
from triojam.core.counters import Counters
from triojam.core.protocol import REFUSALS
from triojam.core.proxy_header import LONGEST_HEADER, HeaderError, parse_header
from triojam.core.reasons import Disconnect, Refusal
from triojam.serving.service import Service

# How many bytes that a refused client has sent are read and dropped.
_UNREAD_BYTES = 4096


class Relayed:
    """A connection from a proxy, and what its header says.

    sock: non-blocking; it belongs to another object. proxy: the proxy's address.
    address: the client's. None until the header is whole, and for a connection of the proxy itself.
    """

    __slots__ = ("_proxy", "_received", "_sock", "address")

    def __init__(self, sock: socket.socket, proxy: tuple[Any, ...]) -> None:
        self._sock: socket.socket | None = sock
        self._proxy = proxy
        self._received = b""
        self.address: tuple[Any, ...] | None = None

    @property
    def waits(self) -> bool:
        """Whether the header is not whole yet."""
        return self._sock is not None

    @property
    def host(self) -> str | None:
        """The client's IP address, for admission."""
        return None if self.address is None else self.address[0]

    def read(self) -> bool:
        """Read more of the header, and not one byte behind it; return whether it is whole.

        Raises HeaderError for a bad header, and for the end of the stream before a whole one;
        trio.BrokenResourceError for a broken connection.
        """
        if self._sock is None:
            return True
        try:
            more = self._sock.recv(LONGEST_HEADER - len(self._received), socket.MSG_PEEK)
            if not more:
                raise HeaderError("the stream ended before the header")
            header = parse_header(self._received + more)
            size = len(more) if header is None else header.size - len(self._received)
            self._received += self._sock.recv(size)
        except BlockingIOError:
            return False
        except OSError as exc:
            raise trio.BrokenResourceError(f"connection broken: {exc}") from exc
        if header is None:
            return False
        self._sock, self._received = None, b""
        # The specification asks for this address in a health check (2.1), and HAProxy sends it in version 1.
        if header.address != endpoint(self._proxy):
            self.address = header.address
        return True


class Newcomer(NamedTuple):
    """A connection that was admitted and counted as opened.

    sock: non-blocking. address: of its other end. relayed: for a connection from a proxy.
    """

    sock: socket.socket
    address: tuple[Any, ...]
    source: Source
    relayed: Relayed | None = None


def admit(sock: socket.socket, address: tuple[Any, ...], service: Service, *, tell: bool) -> Newcomer | None:
    """Admit and count an accepted connection; None if it is refused.

    tell: whether a refused client is sent the reason, if there is a text for it. The server closes the
    connection without waiting. A denied address gets no reply, even when the server is full.
    """
    counters, admission = service.counters, service.admission
    if admission.own and admission.enter_own(address):
        service.own_counters.opened()
        return Newcomer(sock, address, admission.itself)
    host = address[0]
    full = counters.connections_open >= counters.connections_limit
    if admission.has_proxies and admission.is_proxy(host):
        return _admit_relayed(sock, address, service, full=full, tell=tell)
    refusal = admission.refusal(host, full=full)
    if refusal is not None:
        _refuse(sock, refusal, counters, tell=tell)
        return None
    counters.opened()
    return Newcomer(sock, address, admission.enter(host))


def _admit_relayed(
    sock: socket.socket, address: tuple[Any, ...], service: Service, *, full: bool, tell: bool
) -> Newcomer | None:
    """Do as `admit`, for a connection from a proxy. Without its header, only the cap on connections holds."""
    counters, admission = service.counters, service.admission
    sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
    relayed = Relayed(sock, address)
    refusal: Refusal | None
    try:
        whole = relayed.read()
    except HeaderError as exc:
        service.log.debug("bad PROXY header", proxy=format_address(address), why=str(exc))
        refusal = Refusal.PROXY_HEADER
    except trio.BrokenResourceError:  # HAProxy resets the connection of a check after the header
        counters.opened()
        counters.closed(Disconnect.RESET)
        sock.close()
        return None
    else:
        tell = tell and whole  # without the header, the client may belong to a denied network
        refusal = admission.refusal(relayed.host, full=full)
    if refusal is not None:
        _refuse(sock, refusal, counters, tell=tell)
        return None
    counters.opened()
    return Newcomer(sock, address, admission.enter(relayed.host), relayed)


def _refuse(sock: socket.socket, refusal: Refusal, counters: Counters, *, tell: bool) -> None:
    counters.refused(refusal)
    with sock, suppress(OSError):
        if tell and (text := REFUSALS[refusal]):
            sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
            sock.send(text)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(_UNREAD_BYTES)  # closing with unread input would reset the connection
