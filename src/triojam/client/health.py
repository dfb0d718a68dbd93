"""Asks a server of this machine for a sign of life. It starts faster without Trio."""

import socket
import time
from contextlib import suppress
from typing import NamedTuple

from triojam.core.addresses import format_address
from triojam.core.admission import Admission, Policy, parse_networks
from triojam.core.protocol import REQUEST, read_jam
from triojam.core.proxy_header import OWN_CONNECTION

# Where to reach a socket that listens on all addresses.
_LOOPBACK = {"*": ("127.0.0.1", "::1"), "0.0.0.0": ("127.0.0.1",), "::": ("::1",)}  # noqa: S104  # to connect
_LONGEST_REPLY = 512


class Health(NamedTuple):
    """What a health check has found. said: the reply, or what is wrong."""

    healthy: bool
    said: str


def ask_for_health(  # noqa: PLR0913  # a setting for each of them
    host: str, port: int, *, allow: str, deny: str, proxies: str, patience: float
) -> Health:
    """Ask the server that listens on a host and port of this machine.

    A server that replies is healthy, also if it is full. A server that denies this machine closes the
    connection without a reply, which is healthy, too.

    allow, deny, proxies: settings of the server. patience: how long to wait for the reply, in seconds.
    """
    until = time.monotonic() + patience
    policy = Policy(allow=parse_networks(allow), deny=parse_networks(deny), proxies=parse_networks(proxies))
    failure = ""
    for each in _LOOPBACK.get(host, (host,)):
        try:
            connection = socket.create_connection((each, port), _left(until))
        except (OSError, UnicodeError) as exc:
            failure = failure or _failure(each, port, exc)
            continue
        with connection:
            return _ask(connection, each, port, Admission(policy), until)
    return Health(healthy=False, said=failure)


def _ask(connection: socket.socket, host: str, port: int, admission: Admission, until: float) -> Health:
    own, reply = connection.getsockname()[0], b""
    header = OWN_CONNECTION if admission.is_proxy(own) else b""
    try:
        with suppress(ConnectionError):  # a server that refuses the client may have closed already
            connection.sendall(header + REQUEST)
        with suppress(ConnectionError):
            while b"\n" not in reply and len(reply) < _LONGEST_REPLY:
                connection.settimeout(_left(until))
                if not (data := connection.recv(_LONGEST_REPLY)):
                    break
                reply += data
    except OSError as exc:
        return Health(healthy=False, said=_failure(host, port, exc))
    if read_jam(reply) is not None or reply.startswith(b"ERROR "):
        return Health(healthy=True, said=reply.decode("ascii", "backslashreplace").strip())
    if not (reply or header) and admission.refusal(own, full=False) is not None:
        return Health(healthy=True, said=f"closed, because the settings deny {own}")
    return Health(healthy=False, said=f"{format_address((host, port))}: not a time server's reply: {reply!r}")


def _left(until: float) -> float:
    """Return the seconds until the deadline. Raises TimeoutError after it."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _failure(host: str, port: int, exc: Exception) -> str:
    reason = "no reply in time" if isinstance(exc, TimeoutError) else getattr(exc, "strerror", None) or exc
    return f"{format_address((host, port))}: {reason}"
