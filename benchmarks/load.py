"""The client: built once, run on its own core; its output is one line of JSON."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.process import CLIENT_CORE, SERVER_CORE, busy_seconds, cpu_seconds, pinned
from benchmarks.registry import Dialogue, compiled
from benchmarks.shapes import Shape

CLIENT = Path(__file__).parent / "client.c"


@dataclass(frozen=True)
class Sample:
    """One server under one shape for one round."""

    requests: int
    seconds: float
    errors: int
    sent: int
    answered: int
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    cpu_seconds: float
    server_cpu_us: float
    others: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds

    @property
    def right(self) -> bool:
        """Whether every request got its right answer, also outside of the measured time."""
        return not self.errors and self.sent == self.answered

    @property
    def sound(self) -> bool:
        """Whether there are figures, and every request got its right answer."""
        return self.requests > 0 and self.right

    @property
    def client_share(self) -> float:
        """Share of its core that the client used; near 1 the client was the limit, not the server."""
        return self.cpu_seconds / self.seconds

    @property
    def client_limit(self) -> float:
        """Return the rate at which the client would fill its core."""
        return self.requests / self.cpu_seconds if self.cpu_seconds else 0.0

    def as_json(self) -> dict[str, float]:
        """Return the measured and the derived values."""
        return asdict(self) | {"rate": self.rate, "client_share": self.client_share}


def warm_up(seconds: float) -> float:
    """Return how long a client warms up before these seconds."""
    return min(0.2, seconds / 5)


def build_client(build: Path) -> str:
    """Compile the client."""
    return compiled(CLIENT, build)


def _command(client: str, port: int, shape: Shape, dialogue: Dialogue) -> list[str]:
    options = {
        "port": port,
        "mode": shape.mode,
        "connections": shape.connections,
        "pipeline": shape.pipeline,
        "rate": shape.rate,
        "request": dialogue.request,
        "prefix": dialogue.prefix,
        "length": dialogue.length,
    }
    return [client, *(f"--{name}={value}" for name, value in options.items())]


def _own_seconds() -> float:
    """Return the CPU time of this process and of the clients that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@dataclass(frozen=True)
class Visit:
    """A client process that ended.

    others: share of the two cores that all processes except the server, the client and this process used.
    """

    status: int
    output: str
    errors: str
    server_cpu: float
    others: float


def visit(command: Sequence[str], pid: int, patience: float) -> Visit | None:
    """Run a client on its core beside the server with this process id; return None if it takes too long."""
    before, busy, start = cpu_seconds(pid), busy_seconds(), time.monotonic()
    mine = _own_seconds()
    with pinned(CLIENT_CORE):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)
        except subprocess.TimeoutExpired:
            return None
    used = cpu_seconds(pid) - before
    elapsed = (time.monotonic() - start) * len({CLIENT_CORE, SERVER_CORE})
    others = busy_seconds() - busy - used - (_own_seconds() - mine)
    return Visit(done.returncode, done.stdout, done.stderr, used, max(0.0, others / elapsed))


def measure(
    client: str, pid: int, port: int, shape: Shape, dialogue: Dialogue, seconds: float
) -> Sample | None:
    """Load one server for some seconds; return None if the client could not finish.

    The server's CPU time includes the warm-up and the connecting, and so does the number of answers in the
    quotient.
    """
    timing = [f"--seconds={seconds}", f"--warmup={warm_up(seconds)}"]
    done = visit([*_command(client, port, shape, dialogue), *timing], pid, seconds + 60)
    if done is None or done.status:
        return None
    counted = json.loads(done.output)
    cpu_us = done.server_cpu / max(1, counted["answered"]) * 1e6
    return Sample(**counted, server_cpu_us=cpu_us, others=done.others)


@contextlib.contextmanager
def holding(client: str, port: int, shape: Shape, dialogue: Dialogue) -> Iterator[int]:
    """Hold idle connections, each after one request; yield their number."""
    with pinned(CLIENT_CORE):
        process = subprocess.Popen(
            _command(client, port, shape, dialogue),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        counted = json.loads(line) if line else {"connections": 0, "errors": 1}
        yield 0 if counted["errors"] else counted["connections"]
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
