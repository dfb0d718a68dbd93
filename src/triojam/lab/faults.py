"""Faults that the lab causes on purpose.

Each fault runs until it is cancelled, and then leaves nothing behind. The lab prints the first line of its
docstring.
"""

import random
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Protocol

import trio

from triojam.load.crew import Crew
from triojam.load.plan import Plan

SLOW_CLIENTS = 40
GARBAGE_CLIENTS = 10
RESETTING_CLIENTS = 10
# Seconds between two connections of a client; limits a fault to some hundred connections a second.
BETWEEN_VISITS = 0.1
# Long enough for all answers.
GARBAGE_PATIENCE = 1.0
# A pause, so that Prometheus and the dashboards get enough CPU time during a flood.
FLOOD_THINK_TIME = 0.02
WRONG_BY = 90.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 seconds
STUTTER_SECONDS = 0.5
# As the rules have it: if fewer servers of a fleet serve, that is a page.
ENOUGH = 0.6
TOO_FEW = "TriojamTooFewReady"
# In Prometheus: the new sessions of each server, and whether HAProxy uses it.
SESSIONS = 'sum by (server) (rate(haproxy_server_sessions_total{proxy="triojam"}[10s]))'
UP = 'haproxy_server_status{proxy="triojam", state="UP"}'

Visit = Callable[[trio.SocketStream], Awaitable[None]]


class Server(Protocol):
    """What faults do to the process of a server."""

    name: str

    async def set_clock(self, ahead: float) -> None:
        """Set its clock this many seconds ahead."""

    def send_signal(self, signum: int) -> None:
        """Send a signal to its process."""

    def kill(self) -> None:
        """Kill its process."""

    def start_again(self) -> None:
        """Start its process after `kill`."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server that suffers the faults. Durations are in seconds.

    address: where clients connect, in a fleet to HAProxy. limit: the limit on connections, in a fleet that of
    all servers. line_timeout: its timeout for a line. seconds: the duration of a fault.
    """

    server: Server
    address: tuple[str, int]
    limit: int
    line_timeout: float
    seconds: float
    chance: random.Random


async def slow_clients(target: Target) -> None:
    """40 clients send half a line and wait; half of them send the rest later."""

    async def never_ends(stream: trio.SocketStream) -> None:
        await stream.send_all(b"TI")
        await _read(stream)

    async def ends_late(stream: trio.SocketStream) -> None:
        await stream.send_all(b"TI")
        await trio.sleep(target.line_timeout * target.chance.uniform(0.1, 0.8))
        await stream.send_all(b"ME\r\nQUIT\r\n")
        await _read(stream)

    await _run_clients(target, SLOW_CLIENTS // 2, never_ends, ends_late)


async def garbage(target: Target) -> None:
    """10 clients send random bytes."""

    async def babble(stream: trio.SocketStream) -> None:
        lines = [target.chance.randbytes(target.chance.randint(1, 60)) for _ in range(20)]
        await stream.send_all(b"\r\n".join([*lines, b""]))
        with trio.move_on_after(GARBAGE_PATIENCE):
            await _read(stream)

    await _run_clients(target, GARBAGE_CLIENTS, babble)


async def resets(target: Target) -> None:
    """10 clients connect, ask and reset the connection, repeatedly."""

    async def ask_and_reset(stream: trio.SocketStream) -> None:
        await stream.send_all(b"TIME\r\n")
        await stream.receive_some()  # the server has accepted the connection
        await stream.send_all(b"TIME\r\n" * 10)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)

    await _run_clients(target, RESETTING_CLIENTS, ask_and_reset)


async def flood(target: Target) -> None:
    """More clients than the server's limit ask as fast as they can."""
    await run_load(
        target.address,
        Plan(connections=target.limit + target.limit // 10, seconds=inf, think_time=FLOOD_THINK_TIME),
        target.chance,
    )


async def clock(target: Target) -> None:
    """The server's clock steps forward by 90 seconds, and back at the end."""
    await target.server.set_clock(WRONG_BY)
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
            await target.server.set_clock(0.0)


async def pause(target: Target) -> None:
    """The server's process is stopped for two thirds of the time, and then stops and continues in turn."""
    try:
        target.server.send_signal(signal.SIGSTOP)
        await trio.sleep(target.seconds * 2 / 3)
        while True:
            target.server.send_signal(signal.SIGCONT)
            await trio.sleep(STUTTER_SECONDS)
            target.server.send_signal(signal.SIGSTOP)
            await trio.sleep(STUTTER_SECONDS)
    finally:
        target.server.send_signal(signal.SIGCONT)


async def kill(target: Target) -> None:
    """The server's process is killed, and started again at the end."""
    target.server.kill()
    try:
        await trio.sleep_forever()
    finally:
        target.server.start_again()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and what a student sees of it.

    alerts: those that it can fire. in_fleet: the others that it can fire in a fleet. instead: why it fires
    none. query: what shows it in Prometheus. at_haproxy: the same, as HAProxy sees it. of_one: it hits one
    server of a fleet. stops: the server does not serve.
    """

    cause: Callable[[Target], Awaitable[None]]
    alerts: Sequence[str] = ()
    in_fleet: Sequence[str] = ()
    instead: str = ""
    query: str
    at_haproxy: str = SESSIONS
    of_one: bool = False
    stops: bool = False

    @property
    def description(self) -> str:
        """What happens: the first line of its docstring."""
        return (self.cause.__doc__ or "").split("\n")[0].rstrip(".")

    def fires(self, servers: int) -> list[str]:
        """Return the alerts that it can fire in a fleet of this size; 1 is no fleet."""
        if servers == 1:
            return [*self.alerts]
        alerts = [*self.alerts, *self.in_fleet]
        if not self.stops:
            return alerts
        enough = servers - 1 >= ENOUGH * servers
        severity = "ticket" if enough else "page"
        alerts[0] = f"{alerts[0]} (a {severity}: {servers - 1} of {servers} serve)"
        return alerts if enough else [*alerts, TOO_FEW]


FAULTS: dict[str, Fault] = {
    "slow-clients": Fault(
        cause=slow_clients,
        instead="timeouts end these clients",
        query="sum by (reason) (rate(triojam_rejected_total[10s]))",
    ),
    "garbage": Fault(
        cause=garbage,
        instead="ERROR is the right answer to a bad line",
        query="sum by (reason) (rate(triojam_rejected_total[10s]))",
    ),
    "resets": Fault(
        cause=resets,
        alerts=["TriojamSendErrors"],
        query="sum by (reason) (rate(triojam_response_send_errors_total[10s]))",
    ),
    "flood": Fault(
        cause=flood,
        alerts=["TriojamRefusing", "TriojamNearlyFull", "TriojamFailingFast", "TriojamFailingSlowly"],
        in_fleet=["TriojamServerFailing"],
        query="triojam_connections_open / triojam_connections_limit",
    ),
    "clock": Fault(
        cause=clock,
        alerts=["TriojamClockStepped", "TriojamClockWrong"],
        in_fleet=["TriojamClocksDiffer"],
        of_one=True,
        query="triojam_clock_seconds - timestamp(triojam_clock_seconds)",
    ),
    "pause": Fault(
        cause=pause,
        alerts=["TriojamDown", "TriojamEventLoopLag"],
        query='up{job="triojam"}',
        at_haproxy=UP,
        of_one=True,
        stops=True,
    ),
    "kill": Fault(
        cause=kill,
        alerts=["TriojamDown", "TriojamRestarted"],
        query='up{job="triojam"}',
        at_haproxy=UP,
        of_one=True,
        stops=True,
    ),
}


async def run_load(address: tuple[str, int], plan: Plan, chance: random.Random) -> None:
    """Run a load against a server on this machine; start it again if it ends early."""
    while True:
        await Crew(plan, address, chance=chance).run(offset=0.0, bound=0.0)
        await trio.sleep(BETWEEN_VISITS)


async def _run_clients(target: Target, count: int, *visits: Visit) -> None:
    """Run this many clients for each kind of visit; a client connects, visits and closes, repeatedly."""

    async def client(visit: Visit) -> None:
        while True:
            with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):  # refused or reset
                async with await trio.open_tcp_stream(*target.address) as stream:
                    await visit(stream)
            await trio.sleep(BETWEEN_VISITS)

    async with trio.open_nursery() as nursery:
        for visit in visits * count:
            nursery.start_soon(client, visit)


async def _read(stream: trio.SocketStream) -> None:
    async for _ in stream:
        pass
