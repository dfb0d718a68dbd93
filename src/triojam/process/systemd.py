"""The protocols of systemd: sockets that it passes, and messages about the state of the server.

systemd may open the listening sockets (sd_listen_fds(3)). These sockets stay open while the server restarts:
a client that connects meanwhile waits in the accept queue. The server tells systemd when it is ready, reloads
or stops, and that it still answers (sd_notify(3)): one datagram per message.
"""

import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Self

import trio

from triojam.errors import ConfigurationError, invalid_value

# The first passed descriptor: SD_LISTEN_FDS_START.
FIRST = 3
# A larger number of passed sockets is a mistake.
MOST = 1000
# The names of the listeners (FileDescriptorName=). A socket with another name is for the first listener: by
# default, systemd uses the name of the unit, or "unknown".
NAMES = ("time", "tls", "metrics")

_COUNT, _PID, _NAMES = "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"

Passed = Mapping[str, list[socket.socket]]

# How often the totals are sent, if they have changed, in seconds.
STATUS_INTERVAL = 10.0
# How many times the watchdog is fed within its time: two feeds may fail (sd_watchdog_enabled(3) advises two).
FEEDS = 3
# In microseconds. A shorter time is too short to be kept; the longest is a day.
SHORTEST_WATCHDOG, LONGEST_WATCHDOG = 50_000, 86_400_000_000


def take_sockets(environ: MutableMapping[str, str], pid: int) -> Passed:
    """Return the listening sockets passed to process `pid`, by listener.

    Removes their variables from `environ`; children do not inherit the sockets.
    Raises ConfigurationError for a descriptor that is not a listening TCP socket.
    """
    count, for_pid, names = (environ.pop(each, "") for each in (_COUNT, _PID, _NAMES))
    if for_pid != str(pid):  # a parent of this process has left its variables in the environment
        return {}
    number = _whole_number(count, 0, MOST)
    if number is None:
        raise invalid_value(count, _COUNT, f"a number of descriptors, at most {MOST}")
    each_name = names.split(":") if names else [""] * number
    if len(each_name) != number:
        raise invalid_value(names, _NAMES, f"a name for each of {count}")
    passed: dict[str, list[socket.socket]] = {}
    for descriptor, name in enumerate(each_name, FIRST):
        listener = name if name in NAMES else NAMES[0]
        passed.setdefault(listener, []).append(_take(descriptor, name))
    return passed


def _whole_number(text: str, least: int, most: int) -> int | None:
    """Return the number in `text`; None if it is not a number from `least` to `most`."""
    # The length first: Python refuses to read thousands of digits.
    if text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most:
        return int(text)
    return None


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

    address: of a datagram socket: a path, or a name in the abstract namespace, which begins with @.
    watchdog: the service manager kills the process after this many seconds without a feed; 0 = never.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog
        self._stopping = False
        self._status = ""
        self._trouble = ""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], pid: int) -> Self:
        """Read the variables for process `pid`, and remove them, so that children do not see them.

        Raises ConfigurationError.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        text, for_pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(pid))
        if not text or for_pid != str(pid):
            return cls(address)
        micros = _whole_number(text, SHORTEST_WATCHDOG, LONGEST_WATCHDOG)
        if micros is None:
            takes = f"microseconds, from {SHORTEST_WATCHDOG} to {LONGEST_WATCHDOG}"
            raise invalid_value(text, "WATCHDOG_USEC", takes)
        return cls(address, micros / 1e6)

    def ready(self) -> None:
        """Tell that the server is ready."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Tell that a reload begins; `reloaded` must follow."""
        if not self._stopping:
            # By the time, systemd 253 and newer tells this reload from the one before (sd_notify(3)).
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, *, failure: str = "") -> None:
        """Tell that the reload is over; after a failure the old settings stay, and the status says so."""
        self._trouble = f"; settings not reloaded: {failure}" if failure else ""
        if not self._stopping:
            self._send("READY=1", self._status_line())

    def stopping(self) -> None:
        """Tell that the server has begun to stop."""
        self._stopping = True
        self._send("STOPPING=1")

    async def attend(
        self, ask: Callable[[float], Awaitable[bool]], totals: Callable[[], dict[str, int]]
    ) -> None:
        """Send totals when they have changed, and feed the watchdog each time `ask` returns True.

        ask: returns whether the server has answered a real request within the given seconds.
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
            next_feed = trio.current_time() + interval
            if await ask(interval):
                self._send("WATCHDOG=1")
            await trio.sleep_until(next_feed)

    def _status_line(self) -> str:
        return "STATUS=" + " ".join((self._status + self._trouble).split())

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        # A service manager that does not read must not block the server.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
            sock.sendto("\n".join(assignments).encode(), self._address)
