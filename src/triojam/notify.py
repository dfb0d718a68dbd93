"""Tells systemd, or whatever else has started the process, how the service is (sd_notify(3)).

The protocol is one datagram a message, so it is spoken here.
"""

import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Self

import trio

from triojam.errors import ConfigurationError

# How often totals are told, if they have changed, in seconds.
STATUS_INTERVAL = 10.0
# A feed may fail twice within the time that the watchdog gives: sd_watchdog_enabled(3) advises half of it.
FEEDS = 3
# In microseconds: what can be kept at all, and a day.
SHORTEST_WATCHDOG, LONGEST_WATCHDOG = 50_000, 86_400_000_000


class Supervisor:
    """Who wants to know; without an address, nobody, and nothing is sent.

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
        """Take the supervisor of process `pid` out of `environ`, so that children do not see it.

        Raises ConfigurationError.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        micros, for_whom = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(pid))
        if not micros or for_whom != str(pid):
            return cls(address)
        whole = micros.isascii() and micros.isdecimal() and len(micros) <= len(str(LONGEST_WATCHDOG))
        if not (whole and SHORTEST_WATCHDOG <= int(micros) <= LONGEST_WATCHDOG):
            takes = f"microseconds, from {SHORTEST_WATCHDOG} to {LONGEST_WATCHDOG}"
            raise ConfigurationError(f"WATCHDOG_USEC: {micros!r} is not what it takes: {takes}")
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
        # Who does not listen, or not fast enough, does not hold up the service.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
            sock.sendto("\n".join(assignments).encode(), self._address)
