"""Hostile clients by the thousand: python -m tests.helpers.hostile KIND HOST PORT.

A process of its own, so that what a server's other clients notice is the server's doing; plain sockets, for
they must not be slower than it. Prints one JSON object about what became of them.
"""

import json
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

Address = tuple[str, int]
Result = dict[str, float]

CROWD = 10_000
MILLION = 1_000_000
GIGABYTE = 1_000_000_000
AT_ONCE = 1000
DRIP_AT_ONCE = 200
PATIENCE = 60.0

TOLD = b"ERROR timeout: "
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds (socket(7), tcp(7))


def never_reading(address: Address) -> Result:
    """Send a million requests, and read no answer, until the server has enough of it."""
    return _send(address, b"TIME\r\n" * AT_ONCE, MILLION // AT_ONCE)


def endless_line(address: Address) -> Result:
    """Send a gigabyte without LF, until the server has enough of it."""
    megabyte = bytes(1_000_000)
    return _send(address, megabyte, GIGABYTE // len(megabyte))


def _send(address: Address, piece: bytes, pieces: int) -> Result:
    sent = 0
    with socket.create_connection(address, PATIENCE) as client, suppress(ConnectionError):
        for _ in range(pieces):
            client.sendall(piece)
            sent += len(piece)
    return {"sent": sent}


def resets(address: Address) -> Result:
    """Reset connections before a request, amid one and its answer, and after the answer, in turn."""
    for number in range(CROWD):
        with socket.create_connection(address, PATIENCE) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            if number % 3:
                client.sendall(b"TIME\r\nTI")
            if number % 3 == 2:
                client.recv(1)
    return {"reset": CROWD}


def slowloris(address: Address) -> Result:
    """Begin a line on ten thousand connections at once, with a further byte a second on each."""
    began: dict[int, float] = {}
    with select.epoll() as epoll:
        clients: dict[int, socket.socket] = {}
        for _ in range(CROWD):
            client = socket.create_connection(address, PATIENCE)
            client.sendall(b"T")
            clients[client.fileno()] = client
            began[client.fileno()] = time.monotonic()
            epoll.register(client, select.EPOLLIN)
        at_once, told, lasted = len(clients), 0, []
        turn = list(clients)
        last = time.monotonic()
        while clients:
            for fd, _ in epoll.poll(0.01):
                epoll.unregister(fd)
                with clients.pop(fd) as client:
                    told += client.recv(4096).startswith(TOLD)
                lasted.append(time.monotonic() - began[fd])
            now = time.monotonic()
            due = min(
                int(CROWD * (now - last)), DRIP_AT_ONCE
            )  # on a busy machine, less rather than in bursts
            last = now
            drip, turn = turn[:due], turn[due:] + turn[:due]
            for fd in drip:
                if fd in clients:
                    with suppress(ConnectionError):
                        clients[fd].send(b"x")
    return {"at_once": at_once, "told": told, "shortest": min(lasted), "longest": max(lasted)}


KINDS: dict[str, Callable[[Address], Result]] = {
    each.__name__: each for each in (never_reading, endless_line, resets, slowloris)
}


def main() -> None:
    """Run the command line."""
    kind, host, port = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(KINDS[kind]((host, int(port)))))  # noqa: T201  # a command line prints


if __name__ == "__main__":
    main()
