"""Clients by the thousand: python -m tests.helpers.crowds KIND HOST PORT.

They run in a separate process on plain sockets, so that they do not slow down the other clients of the
server. The result is one JSON object on stdout.
"""

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from tests.helpers.sockets import Address, raise_descriptor_limit, receives_time, reset_on_close

Result = dict[str, float]

CROWD = 10_000
MILLION = 1_000_000
GIGABYTE = 1_000_000_000
AT_ONCE = 1000
DRIP_AT_ONCE = 200
PATIENCE = 60.0

TIMEOUT_LINE = b"ERROR timeout: "


def never_reading(address: Address) -> Result:
    """Send up to a million requests without reading, until the server closes."""
    return _send(address, b"TIME\r\n" * AT_ONCE, MILLION // AT_ONCE)


def endless_line(address: Address) -> Result:
    """Send up to a gigabyte without LF, until the server closes."""
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
    """Reset connections before a request, within a request, and after an answer, in turn."""
    for number in range(CROWD):
        with socket.create_connection(address, PATIENCE) as client:
            reset_on_close(client)
            if number % 3:
                client.sendall(b"TIME\r\nTI")
            if number % 3 == 2:
                client.recv(1)
    return {"reset": CROWD}


def idle(address: Address) -> Result:
    """Hold all connections open, and send a request on each, twice."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(CROWD)]
        answered = []
        for _ in range(2):
            for client in clients:
                client.sendall(b"TIME\r\n")
            answered.append(sum(map(receives_time, clients)))
    return {"first": answered[0], "second": answered[1]}


def slowloris(address: Address) -> Result:
    """Begin a line on all connections, and send one more byte a second on each."""
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
                    told += client.recv(4096).startswith(TIMEOUT_LINE)
                lasted.append(time.monotonic() - began[fd])
            now = time.monotonic()
            # On a busy machine they send less, rather than in bursts.
            due = min(int(CROWD * (now - last)), DRIP_AT_ONCE)
            last = now
            drip, turn = turn[:due], turn[due:] + turn[:due]
            for fd in drip:
                if fd in clients:
                    with suppress(ConnectionError):
                        clients[fd].send(b"x")
    return {"at_once": at_once, "told": told, "shortest": min(lasted), "longest": max(lasted)}


KINDS: dict[str, Callable[[Address], Result]] = {
    each.__name__: each for each in (never_reading, endless_line, resets, idle, slowloris)
}


def main() -> None:
    """Run the command line."""
    kind, host, port = sys.argv[1:]
    raise_descriptor_limit()
    print(json.dumps(KINDS[kind]((host, int(port)))))  # noqa: T201  # a command line prints


if __name__ == "__main__":
    main()
