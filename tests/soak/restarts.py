"""A server that is restarted under a listening socket that stays; its clients may not notice.

As under systemd's socket activation (sd_listen_fds(3)): the socket is held here, and each process is handed it.
"""

import random
import signal
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio
import trustme

from tests.process import COMMAND
from tests.soak.clients import Client, LetDownError, Tally, Target
from tests.soak.honest import REQUEST
from tests.soak.servers import running

# A process that is started by this has the socket as its descriptor 3, and knows that it is meant.
ACTIVATION = ("sh", "-c", 'export LISTEN_PID=$$; exec "$@" 3<&"$SOAK_SOCKET"', "sh")
CLIENTS = 4
BACKLOG = 1024
STOP_PATIENCE = 15.0


@dataclass
class Restarts:
    """What came of them. totals: of all processes, by what they logged at their ends. asked_again: see there."""

    tally: Tally = field(default_factory=Tally)
    totals: Counter[str] = field(default_factory=Counter)
    times: int = 0
    asked_again: int = 0
    faults: list[str] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)


async def restart_again_and_again(
    folder: Path,
    authority: trustme.CA,
    target: Target,
    *,
    every: float,
    ends: float,
    seed: int,
    clock: Callable[[], float],
) -> Restarts:
    """Have clients ask all the time, while their server is restarted every so many seconds, until `ends`."""
    restarts = Restarts()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(BACKLOG)
        target = replace(target, plain=listening.getsockname())
        over = trio.Event()

        async def ask() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    for visit in (_once, partial(_keeps, restarts)):
                        client = Client(
                            target=target,
                            source=f"127.0.4.{number + 1}",
                            chance=random.Random(f"{seed}/restarts/{number}"),
                            ends=ends,
                            tally=restarts.tally,
                        )
                        nursery.start_soon(_hold_to_it, visit, client)
            over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not over.is_set():
                with trio.move_on_after(every):
                    pass
                await _one_life(restarts, folder, authority, listening, every, over)
                restarts.moments.append(clock())
    return restarts


async def _one_life(
    restarts: Restarts,
    folder: Path,
    authority: trustme.CA,
    listening: socket.socket,
    seconds: float,
    over: trio.Event,
) -> None:
    listening_fd = listening.fileno()
    command = (*ACTIVATION, *COMMAND)
    async with running(
        folder,
        authority,
        command,
        pass_fds=(listening_fd,),
        LISTEN_FDS="1",
        LISTEN_FDNAMES="time",
        SOAK_SOCKET=str(listening_fd),
    ) as server:
        with trio.move_on_after(seconds):
            await over.wait()
        server.process.send_signal(signal.SIGTERM)
        stopped = await server.log.until("stopped")
        with trio.move_on_after(STOP_PATIENCE):
            await server.process.wait()
        restarts.times += 1
        if server.process.returncode != 0:
            restarts.faults.append(f"exit status {server.process.returncode} after SIGTERM")
        if stopped["requests"] != stopped["responses"] + stopped["rejected"] + stopped["send_errors"]:
            restarts.faults.append(f"a process ended with unbalanced accounts: {stopped}")
        restarts.faults += server.log.grave
        for name in ("requests", "responses", "rejected", "send_errors"):
            restarts.totals[name] += stopped[name]


async def _once(client: Client) -> None:
    """Connects, asks, closes."""
    async with await client.connect() as stream:
        await client.ask(stream, [REQUEST], 1)
    await trio.sleep(client.chance.uniform(0, 0.05))


async def _keeps(restarts: Restarts, client: Client) -> None:
    """Asks on one connection until the server says goodbye.

    A request that crosses the goodbye on its way has not been read by anybody: it is asked again elsewhere, as
    with any protocol that keeps connections (RFC 9112, 9.5), and counted here. It must be the first that
    is without an answer, and must have met an orderly end, no reset.
    """
    async with await client.connect() as stream:
        while client.goes_on:
            try:
                await client.ask(stream, [REQUEST], 1)
            except LetDownError as exc:
                if "ended after 0 of 1" not in str(exc):
                    raise
                client.tally.sent -= 1
                restarts.asked_again += 1
                return
            await trio.sleep(client.chance.uniform(0, 0.05))


async def _hold_to_it(visit: Callable[[Client], "trio.abc.Awaitable[None]"], client: Client) -> None:
    while client.goes_on:
        try:
            await visit(client)
        except (OSError, trio.BrokenResourceError, LetDownError) as exc:
            client.tally.failures[f"during restarts: {exc!r}"] += 1
