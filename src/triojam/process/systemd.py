"""What systemd, or another service manager that speaks its protocols, gives this process and is told.

It may open the listening sockets (sd_listen_fds(3)). They were there before the server and stay after it: a
client that connects while no server runs waits in their queue for the next one. It may want to know when the
server is ready, reloads or stops, and whether it still answers (sd_notify(3)): one datagram a message.
"""

import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Self

import trio

from triojam.errors import ConfigurationError, invalid_value

# What is passed begins after stderr: SD_LISTEN_FDS_START.
FIRST = 3
# More than any service listens on; a number that is larger is a mistake.
MOST = 1000
# The listeners there are, by the names that sockets may be passed under (FileDescriptorName=). A socket
# under any other name is for the first: by default, the name is the unit's own, or "unknown".
NAMES = ("time", "tls", "metrics")

_COUNT, _FOR_WHOM, _NAMES = "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"

Passed = Mapping[str, list[socket.socket]]

# How often totals are told, if they have changed, in seconds.
STATUS_INTERVAL = 10.0
# A feed may fail twice within the time that the watchdog gives: sd_watchdog_enabled(3) advises half of it.
FEEDS = 3
# In microseconds: what can be kept at all, and a day.
SHORTEST_WATCHDOG, LONGEST_WATCHDOG = 50_000, 86_400_000_000


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
        raise invalid_value(count, _COUNT, takes)
    each_name = names.split(":") if names else [""] * int(count)
    if len(each_name) != int(count):
        raise invalid_value(names, _NAMES, f"a name for each of {count}")
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
    return ConfigurationError(f"invalid {where} in {_COUNT}: expected a listening TCP socket")


class ServiceManager:
    """The service manager that has started this process; without an address, nothing is sent.

    address: of a datagram socket: a path, or a name in the abstract namespace that begins with @.
    watchdog: the process is killed if it does not feed the watchdog for this many seconds; 0 = never.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog
        self._stopping = False
        self._status = ""
        self._trouble = ""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], pid: int) -> Self:
        """Take the service manager of process `pid` out of `environ`, so that children do not see it.

        Raises ConfigurationError.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        micros, for_whom = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(pid))
        if not micros or for_whom != str(pid):
            return cls(address)
        whole = micros.isascii() and micros.isdecimal() and len(micros) <= len(str(LONGEST_WATCHDOG))
        if not (whole and SHORTEST_WATCHDOG <= int(micros) <= LONGEST_WATCHDOG):
            takes = f"microseconds, from {SHORTEST_WATCHDOG} to {LONGEST_WATCHDOG}"
            raise invalid_value(micros, "WATCHDOG_USEC", takes)
        return cls(address, int(micros) / 1e6)

    def ready(self) -> None:
        """Tell that clients are served."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Tell that settings are being read again; `reloaded` must follow."""
        if not self._stopping:
            # The time is how systemd 253 and newer tells this reload from one before (sd_notify(3)).
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, *, failure: str = "") -> None:
        """Tell that it is over; after a failure the old settings serve on, and the status says so."""
        self._trouble = f"; settings not reloaded: {failure}" if failure else ""
        if not self._stopping:
            self._send("READY=1", self._status_line())

    def stopping(self) -> None:
        """Tell that the service has begun to stop."""
        self._stopping = True
        self._send("STOPPING=1")

    async def attend(
        self, ask: Callable[[float], Awaitable[bool]], totals: Callable[[], dict[str, int]]
    ) -> None:
        """Tell totals when they have changed, and feed the watchdog each time `ask` returns True.

        ask: whether the server has served a client in earnest, within so many seconds.
        """
        if not self._address:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, totals)
            if self._watchdog:
                nursery.start_soon(self._feed, ask)

    async def _report(self, totals: Callable[[], dict[str, int]]) -> None:
        while True:
            status = ", ".join(f"{number} {name}" for name, number in totals().items())
            if status != self._status:
                self._status = status
                self._send(self._status_line())
            await trio.sleep(STATUS_INTERVAL)

    async def _feed(self, ask: Callable[[float], Awaitable[bool]]) -> None:
        interval = self._watchdog / FEEDS
        while True:
            next_one = trio.current_time() + interval
            if await ask(interval):
                self._send("WATCHDOG=1")
            await trio.sleep_until(next_one)

    def _status_line(self) -> str:
        return "STATUS=" + " ".join((self._status + self._trouble).split())

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        # A service manager that does not read must not block the server.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
            sock.sendto("\n".join(assignments).encode(), self._address)
