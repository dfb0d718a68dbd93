"""All servers of a run: they run at the same time, and each is checked before it is measured."""

import contextlib
import re
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process import free_port, running, wait_for_port
from benchmarks.registry import Dialogue, MissingError, Peer


@dataclass(frozen=True)
class Server:
    """A running peer."""

    peer: Peer
    pid: int
    port: int
    metrics_port: int | None


def _lines(connection: socket.socket, count: int) -> list[bytes]:
    received = b""
    while received.count(b"\n") < count:
        data = connection.recv(4096)
        if not data:
            break
        received += data
    return received.split(b"\n")


def fault(port: int, dialogue: Dialogue) -> str | None:
    """Send requests in pieces and in a pipeline; return the fault in the answers, or None."""
    request, count = dialogue.request.encode(), 20
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in (request[:2], request[2:-1], request[-1:] + request * (count - 1)):
                connection.sendall(piece)
                time.sleep(0.05)
            *answers, rest = _lines(connection, count)
    except OSError as error:
        return f"no answer: {error}"
    if len(answers) != count or rest:
        return f"{len(answers)} answers to {count} requests"
    for answer in answers:
        line = answer + b"\n"
        if not line.startswith(dialogue.prefix.encode()):
            return f"unexpected answer {line!r}"
        if dialogue == Dialogue() and not re.fullmatch(rb"JAM \d\d:\d\d:\d\d\r\n", line):
            return f"unexpected answer {line!r}"
    return None


@contextlib.contextmanager
def up(peer: Peer, build: Path) -> Iterator[Server]:
    """Run one peer; raise `MissingError` if it does not start."""
    port = free_port()
    launch = peer.prepare(port, build)
    log = build / f"{peer.name}.log"
    with running(launch.command, launch.environment, log, build) as process:
        if not wait_for_port(process, port):
            tail = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise MissingError(f"does not start: {' '.join(tail)}")
        yield Server(peer, process.pid, port, launch.metrics_port)


@contextlib.contextmanager
def all_up(peers: Iterable[Peer], build: Path, skipped: dict[str, str]) -> Iterator[list[Server]]:
    """Run all peers; the peers that do not start, and the reasons, are added to ``skipped``."""
    with contextlib.ExitStack() as stack:
        servers = []
        for peer in peers:
            try:
                servers.append(stack.enter_context(up(peer, build)))
            except MissingError as missing:
                skipped[peer.name] = str(missing)
                print(f"skipped {peer.title}: {missing}")
        yield servers
