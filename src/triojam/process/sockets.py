"""Listening sockets, and the number of descriptors for clients."""

import errno
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import trio

from triojam.core.addresses import format_address, host_and_port
from triojam.errors import ListenError
from triojam.process.systemd import NAMES, Passed
from triojam.settings.fields import ADDRESS, SettingError, Settings

if sys.platform != "win32":
    import resource

# File descriptors that are kept for listeners, scrapers, the log, and libraries.
RESERVED_DESCRIPTORS = 64


# The machine has no such address, or no IPv6 at all. The other addresses of the host may work.
_NO_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_NOT_YET = "this machine does not have the address, or not yet"
# A longer queue than any system allows: each takes its own limit (listen(2)).
_BACKLOG = 0xFFFF
# The state LISTEN in the kernel's table of TCP sockets (proc(5)).
_LISTEN = "0A"


class Missed(NamedTuple):
    """An address of a host on which this machine cannot listen, while it can on others."""

    setting: str
    address: str
    reason: str


class Sockets(NamedTuple):
    """The listening sockets of the time service, plain and over TLS, and of the metrics listener."""

    time: list[trio.socket.SocketType]
    tls: list[trio.socket.SocketType]
    web: list[trio.socket.SocketType]
    missed: list[Missed]

    def close(self) -> None:
        """Close the sockets that are still open here."""
        for sock in chain(self.time, self.tls, self.web):
            sock.close()


async def listen(setting: str, host: str, port: int) -> tuple[list[trio.socket.SocketType], list[Missed]]:
    """Listen on every address of `host`, the value of `setting`, that this machine has.

    Raises ListenError, or SettingError for a host that does not exist.
    """
    try:
        sockets, failures = await _listen(host, port)
    except (OSError, UnicodeError) as exc:
        if _is_unknown(exc, host):
            raise SettingError(setting, host, ADDRESS) from None
        where = format_address((host, port))
        raise ListenError(f"cannot listen on {where}: {_reason(exc, port)}") from exc
    return sockets, [Missed(setting, where, _reason(exc, port)) for where, exc in failures.items()]


def find_unusable_hosts(settings: Settings) -> list[SettingError]:
    """Return an error for each host of the settings on which this machine cannot listen, on any free port."""
    hosts = {"host": settings.host}
    if settings.metrics_port is not None:
        hosts["metrics_host"] = settings.metrics_host
    found: list[SettingError] = []
    for setting, host in hosts.items():
        try:
            trio.run(_try_to_listen, host)
        except (OSError, UnicodeError) as exc:
            why = "" if _is_unknown(exc, host) else f" ({_reason(exc, 0)})"
            found.append(SettingError(setting, host, ADDRESS + why))
    return found


async def _try_to_listen(host: str) -> None:
    sockets, _ = await _listen(host, 0)
    for sock in sockets:
        sock.close()


async def _listen(host: str, port: int) -> tuple[list[trio.socket.SocketType], dict[str, OSError]]:
    """Listen where the machine has the address; return the failures elsewhere, by address.

    Raises OSError or UnicodeError if the host has no address, if none works, or if the port is in use on one.
    """
    found = await trio.socket.getaddrinfo(
        None if host == "*" else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[trio.socket.SocketType] = []
    failures: dict[str, OSError] = {}
    try:
        # Some entries of /etc/hosts give an address twice; the second would find the port in use.
        for family, address in dict.fromkeys((each[0], each[4]) for each in found):
            try:
                sockets.append(await _listen_on(family, address))
            except OSError as exc:
                if exc.errno not in _NO_ADDRESS:
                    raise
                failures[format_address(address)] = exc
        if not sockets:
            raise next(iter(failures.values()))  # noqa: TRY301  # no socket is open here
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets, {} if host == "*" else failures  # "every interface" includes those that do not exist


async def _listen_on(family: int, address: tuple[Any, ...]) -> trio.socket.SocketType:
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there, the option lets two servers have one port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind(address)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_unknown(exc: Exception, host: str) -> bool:
    """Whether a host does not exist. A name server can be late, and so can the interface of a zone."""
    if isinstance(exc, socket.gaierror):
        return "%" not in host and exc.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
    return isinstance(exc, UnicodeError)


def _reason(exc: Exception, port: int) -> str:
    if isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_AGAIN:
        return "the name server does not answer, or not yet"
    code = exc.errno if isinstance(exc, OSError) else None
    if code in _NO_ADDRESS or (isinstance(exc, socket.gaierror) and code == socket.EAI_NONAME):
        return _NOT_YET
    if code == errno.EADDRINUSE:
        if _only_connections_have(port):
            keep = f"sysctl net.ipv4.ip_local_reserved_ports={port}"
            return f"the port is held by an outgoing connection; keep it free with: {keep}"
        return "the port is already in use"
    return str((exc.strerror if isinstance(exc, OSError) else None) or exc)


def _only_connections_have(port: int) -> bool:
    """Whether connections have this local port, and no socket listens on it; False if that is not known."""
    states: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError), Path(table).open(encoding="ascii") as rows:
            next(rows, None)  # the names of the columns
            columns = (row.split() for row in rows)
            states |= {each[3] for each in columns if each[1].endswith(f":{port:04X}")}
    return bool(states) and _LISTEN not in states


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
    time, tls, web = (
        [trio.socket.from_stdlib_socket(sock) for sock in passed.get(name, [])] for name in NAMES
    )
    sockets = Sockets(time, tls, web, missed=[])
    try:
        for into, setting, each_host, each_port in (
            (sockets.time, "host", host, port),
            (sockets.tls, "host", host, tls_port),
            (sockets.web, "metrics_host", metrics_host, metrics_port),
        ):
            if each_port is not None and not into:
                listening, missed = await listen(setting, each_host, each_port)
                into.extend(listening)
                sockets.missed.extend(missed)
    except BaseException:
        sockets.close()
        raise
    return sockets


def addresses(sockets: Iterable[trio.socket.SocketType]) -> list[tuple[str, int]]:
    """Return host and port of each socket."""
    return [host_and_port(sock.getsockname()) for sock in sockets]


def descriptor_limit() -> int:
    """Return how many file descriptors this process may open."""
    if sys.platform == "win32":  # handles there have no such limit
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def connection_limit(max_connections: int) -> int:
    """Return how many connections may be open at once: the setting, or fewer if descriptors are few."""
    return min(max_connections or sys.maxsize, max(descriptor_limit() - RESERVED_DESCRIPTORS, 1))
