"""Sockets that systemd, or whatever speaks its protocol, has opened for this process (sd_listen_fds(3)).

The listening sockets are then not the server's to make: they were there before it and stay after it, and
who connects while no server runs waits in their queue for the next one.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping

from triojam.errors import ConfigurationError

# What is passed begins after stderr: SD_LISTEN_FDS_START.
FIRST = 3
# More than any service listens on; a number that is larger is a mistake.
MOST = 1000
# The listeners there are, by the names that sockets may be passed under (FileDescriptorName=). A socket
# under any other name is for the first: by default, the name is the unit's own, or "unknown".
NAMES = ("time", "tls", "metrics")

_COUNT, _FOR_WHOM, _NAMES = "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"

Passed = Mapping[str, list[socket.socket]]


def take_sockets(environ: MutableMapping[str, str], pid: int) -> Passed:
    """Return the listening sockets passed to process `pid`, by the listener that each is for.

    Takes their variables out of `environ`, and keeps the sockets from children.
    Raises ConfigurationError for what is not a listening TCP socket.
    """
    count, for_whom, names = (environ.pop(each, "") for each in (_COUNT, _FOR_WHOM, _NAMES))
    if for_whom != str(pid):  # passed to a parent of this process, which has not minded its variables
        return {}
    if not (count.isascii() and count.isdecimal() and len(count) <= len(str(MOST)) and int(count) <= MOST):
        takes = f"a number of descriptors, at most {MOST}"
        raise ConfigurationError(f"{_COUNT}: {count!r} is not what it takes: {takes}")
    each_name = names.split(":") if names else [""] * int(count)
    if len(each_name) != int(count):
        raise ConfigurationError(f"{_NAMES}: {names!r} is not what it takes: a name for each of {count}")
    passed: dict[str, list[socket.socket]] = {}
    for descriptor, name in enumerate(each_name, FIRST):
        listener = name if name in NAMES else NAMES[0]
        passed.setdefault(listener, []).append(_take(descriptor, name))
    return passed


def _take(descriptor: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)  # noqa: FBT003  # the standard library's signature
        sock = socket.socket(fileno=descriptor)
    except OSError as exc:  # not open, or not a socket
        raise _unusable(descriptor, name) from exc
    is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
    if not (is_tcp and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        sock.close()
        raise _unusable(descriptor, name)
    return sock


def _unusable(descriptor: int, name: str) -> ConfigurationError:
    where = f"descriptor {descriptor} ({name or 'without a name'})"
    return ConfigurationError(f"{_COUNT}: {where} is not what it takes: a listening TCP socket")
