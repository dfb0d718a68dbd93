"""The server asks itself for the time through its own listening sockets, as a client does."""

import errno
from collections.abc import Iterable

import trio

from triojam.core.addresses import MAPPED, format_address
from triojam.core.counters import Counters
from triojam.core.protocol import REQUEST, read_jam

_JAM_SIZE = len(b"JAM hh:mm:ss\r\n")

# Where to reach a socket that listens on all addresses. A machine with IPv6 switched off has no ::1, but it
# can listen on [::]; clients then reach that socket over IPv4.
_LOOPBACK = {"0.0.0.0": ["127.0.0.1"], "::": ["::1", "127.0.0.1"]}  # noqa: S104  # to connect, not to listen


async def ask_itself(
    listening: Iterable[tuple[str, int]], own: set[tuple[str, int]], counters: Counters
) -> str | None:
    """Ask each listening address for the time; return a description of the first failure, or None.

    own: contains the probe's address while it asks. A server that is full, or that denies its own machine,
        must admit the probe; otherwise its supervisor would take it for broken.
    """
    for host, port in listening:
        try:
            counters.self_checks += 1
            answer = await _ask(_LOOPBACK.get(host, [host]), port, own)
        except OSError as exc:
            return f"{format_address((host, port))}: {exc.strerror or exc}"
        if read_jam(answer) is None:
            return f"{format_address((host, port))}: not the time: {answer!r}"
    return None


async def _ask(hosts: list[str], port: int, own: set[tuple[str, int]]) -> bytes:
    host, *others = hosts
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    with trio.socket.socket(family) as sock:
        try:
            await sock.bind((host, 0))
        except OSError as exc:
            if others and exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return await _ask(others, port, own)
            raise
        seen, source = sock.getsockname()[:2]  # without the zone that a link-local host has
        seen_as = {(seen, source), (MAPPED + seen, source)}  # a socket for :: shows the latter
        own |= seen_as
        try:
            await sock.connect((host, port))
            await sock.send(REQUEST)
            answer = b""
            while len(answer) < _JAM_SIZE and (data := await sock.recv(_JAM_SIZE)):
                answer += data
            return answer
        finally:
            own -= seen_as
