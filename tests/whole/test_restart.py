"""A restart under socket activation: no client is refused, reset or left without an answer."""

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from tests.helpers.program import COMMAND, environment, launched
from tests.helpers.requirements import require_program
from tests.helpers.servers import receive_exactly, until
from tests.helpers.service_manager import Told
from tests.helpers.sockets import JAM_BYTES

CLIENTS = 10
RESTARTS = 3
ANSWERS = 100  # between one restart and the next

# systemd-socket-activate executes this for the first client. It starts the command several times, each time
# in a new process with the same listening socket, and writes the process number to the file $1.
AGAIN = (
    'file=$1; shift; for _ in 0 1 2 3; do'
    ' sh -c \'echo $$ >"$0"; LISTEN_PID=$$ exec "$@"\' "$file" "$@" || exit; done'
)  # fmt: skip


class Client:
    """Connects, sends a request and closes, repeatedly."""

    def __init__(self, port: int, pause: float) -> None:
        self.answered = 0
        self._port = port
        self._pause = pause

    async def run(self, stop: trio.Event) -> None:
        """Run until `stop`; any error and any wrong answer is raised."""
        while not stop.is_set():
            async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
                await trio.sleep(self._pause)
                await stream.send_all(b"TIME\r\n")
                answer = await receive_exactly(stream, JAM_BYTES)
                assert answer.startswith(b"JAM ")
                assert len(answer) == JAM_BYTES
                self.answered += 1


@asynccontextmanager
async def activated(port: int, file: Path, **variables: str) -> AsyncIterator[trio.Process]:
    """Run systemd-socket-activate, which starts the servers for the first client."""
    activate = require_program("systemd-socket-activate", "systemd")
    # It passes on only named variables.
    names = [f"--setenv={name}" for name in environment(**variables)]
    command = [activate, "-l", f"127.0.0.1:{port}", *names, "/bin/sh", "-c", AGAIN, "sh", str(file), *COMMAND]
    async with launched(command, variables) as process:
        try:
            yield process
        finally:
            with suppress(FileNotFoundError, ProcessLookupError):  # a child of that process outlives it
                os.kill(process_number(file), signal.SIGKILL)


async def test_no_client_notices_a_restart(tmp_path: Path) -> None:
    """Clients get every answer while the server is restarted three times.

    Half of them wait longer before their request than a draining server keeps idle clients.
    """
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    file = tmp_path / "pid"
    clients = [Client(port, pause=0.1 * (number % 2)) for number in range(CLIENTS)]

    def answered() -> int:
        return sum(client.answered for client in clients)

    def reached(target: int) -> bool:
        return answered() >= target

    with Told.at(tmp_path / "notify") as told:
        variables = {"NOTIFY_SOCKET": told.address, "TRIOJAM_METRICS_PORT": "none"}
        async with activated(port, file, **variables) as process:
            await until(lambda: is_listening(port))
            stop = trio.Event()
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(client.run, stop)
                for life in range(1 + RESTARTS):
                    if life:
                        terminate(file)
                        await told.until("STOPPING")
                    await told.until("READY")
                    target = answered() + ANSWERS
                    await until(partial(reached, target))
                stop.set()
            terminate(file)
            assert await process.wait() == 0


def terminate(file: Path) -> None:
    """Stop the server with the process number in the file."""
    os.kill(process_number(file), signal.SIGTERM)


def process_number(file: Path) -> int:
    """Return the process number in the file."""
    return int(file.read_text())


def is_listening(port: int) -> bool:
    """Whether a socket listens on this loopback port, found without a connection."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()]
    return any(row[1] == f"0100007F:{port:04X}" and row[3] == "0A" for row in rows)
