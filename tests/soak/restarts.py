"""A server that is restarted under a listening socket that stays open. Its clients must not notice.

As with socket activation of systemd (sd_listen_fds(3)), each process gets the socket as descriptor 3.
"""

import random
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio
import trustme

from tests.helpers.program import COMMAND
from tests.soak.clients import Client, EndOfStreamError, Target, repeat_until_the_end
from tests.soak.honest import REQUEST
from tests.soak.record import Restarts
from tests.soak.servers import Running, running

# Executes the command after the number of a descriptor, with that as descriptor 3.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "time"}
os.execv(sys.argv[2], sys.argv[2:])
"""
CLIENTS = 4
BACKLOG = 1024


async def restart_repeatedly(
    folder: Path,
    authority: trustme.CA,
    target: Target,
    restarts: Restarts,
    *,
    every: float,
    seconds: float,
    seed: int,
    clock: Callable[[], float],
) -> None:
    """Run clients for this time, while their server is restarted at intervals."""
    over = trio.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
        target = replace(target, plain=listening.getsockname())
        ends = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, target, restarts, ends, seed, over)
            while True:
                async with _activated(folder, authority, listening) as server:
                    with trio.move_on_after(every):
                        await over.wait()
                    await _stop(server, restarts)
                    if over.is_set():
                        return
                    restarts.moments.append(clock())


def _activated(
    folder: Path, authority: trustme.CA, listening: socket.socket
) -> AbstractAsyncContextManager[Running]:
    number = listening.fileno()
    command = (sys.executable, "-c", ACTIVATE, str(number), *COMMAND)
    return running(folder, authority, command, pass_fds=(number,))


async def _stop(server: Running, restarts: Restarts) -> None:
    status, stopped = await server.stop()
    if status != 0:
        restarts.faults.append(f"a process ended with exit status {status}")
    if stopped["requests"] != stopped["responses"] + stopped["rejected"] + stopped["send_errors"]:
        restarts.faults.append(f"the counts of a process do not balance: {stopped}")
    restarts.faults += server.log.grave
    for name in ("requests", "responses", "rejected", "send_errors"):
        restarts.totals[name] += stopped[name]


async def _ask(target: Target, restarts: Restarts, ends: float, seed: int, over: trio.Event) -> None:
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
                nursery.start_soon(repeat_until_the_end, visit, client)
    over.set()


async def _once(client: Client) -> None:
    """Connect, send a request and close."""
    async with await client.connect() as stream:
        await client.ask(stream, [REQUEST], 1)
    await trio.sleep(client.chance.uniform(0, 0.05))


async def _keeps(restarts: Restarts, client: Client) -> None:
    """Send requests on one connection until the server ends it orderly; a reset is a failure.

    The server has not read a request that was on its way then. The client sends it again on a new connection,
    as in other protocols with open connections (RFC 9112, 9.5), and counts it.
    """
    async with await client.connect() as stream:
        while client.goes_on:
            try:
                await client.ask(stream, [REQUEST], 1)
            except EndOfStreamError:
                client.tally.sent -= 1
                restarts.sent_again += 1
                return
            with trio.move_on_after(client.chance.uniform(0, 0.05)):
                await stream.receive_some()  # no answer is due, so this is the end
                return
