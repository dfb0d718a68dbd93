"""Listening sockets, and the number of descriptors for clients."""

import errno
import socket
import sys
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import trio

from triojam.core.addresses import format_address
from triojam.errors import ListenError
from triojam.process.systemd import NAMES, Passed
from triojam.settings.fields import ADDRESS, SettingError

if sys.platform != "win32":
    import resource

# File descriptors that are kept for listeners, scrapers, the log, and libraries.
RESERVED_DESCRIPTORS = 64


async def listen(setting: str, host: str, port: int) -> list[trio.socket.SocketType]:
    """Listen on every address of `host`, the value of `setting`. Raises SettingError or ListenError."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=None if host == "*" else host)
    except (socket.gaierror, UnicodeError):
        raise SettingError(setting, host, ADDRESS) from None
    except OSError as exc:
        if exc.errno == errno.EADDRNOTAVAIL:
            raise SettingError(setting, host, ADDRESS) from None
        where = format_address((host, port))
        if exc.errno == errno.EADDRINUSE:
            raise ListenError(f"cannot listen on {where}: the port is already in use") from exc
        raise ListenError(f"cannot listen on {where}: {exc.strerror or exc}") from exc
    return [each.socket for each in listeners]


class Sockets(NamedTuple):
    """The listening sockets of the time service, plain and over TLS, and of the metrics listener."""

    time: list[trio.socket.SocketType]
    tls: list[trio.socket.SocketType]
    web: list[trio.socket.SocketType]

    def close(self) -> None:
        """Close the sockets that are still open here."""
        for sock in chain(*self):
            sock.close()


async def open_sockets(  # noqa: PLR0913  # a setting for each part of each address
    *,
    host: str,
    port: int,
    tls_port: int | None,
    metrics_host: str,
    metrics_port: int | None,
    passed: Passed,
) -> Sockets:
    """Listen on every port that is set, or on none. Raises SettingError or ListenError.

    passed: sockets that replace the host and port of a listener. A port must be set for that listener.
    """
    for name, setting, value in (("tls", "tls_port", tls_port), ("metrics", "metrics_port", metrics_port)):
        if name in passed and value is None:
            raise SettingError(setting, "none", f"a port, if a socket named {name} is passed")
    sockets = Sockets(*(
        [trio.socket.from_stdlib_socket(sock) for sock in passed.get(name, [])] for name in NAMES
    ))  # fmt: skip
    try:
        if not sockets.time:
            sockets.time.extend(await listen("host", host, port))
        if tls_port is not None and not sockets.tls:
            sockets.tls.extend(await listen("host", host, tls_port))
        if metrics_port is not None and not sockets.web:
            sockets.web.extend(await listen("metrics_host", metrics_host, metrics_port))
    except BaseException:
        sockets.close()
        raise
    return sockets


def addresses(sockets: Iterable[trio.socket.SocketType]) -> list[tuple[str, int]]:
    """Return host and port of each socket."""
    return [sock.getsockname()[:2] for sock in sockets]


def descriptor_limit() -> int:
    """Return how many file descriptors this process may open."""
    if sys.platform == "win32":  # handles there have no such limit
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def connection_limit(max_connections: int) -> int:
    """Return how many connections may be open at once: the setting, or fewer if descriptors are few."""
    return min(max_connections or sys.maxsize, max(descriptor_limit() - RESERVED_DESCRIPTORS, 1))
