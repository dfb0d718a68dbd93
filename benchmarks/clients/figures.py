"""One case, measured once by one of the two clients."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet import Server
from benchmarks.load import visit, warm_up
from benchmarks.rounds import measure_sound
from benchmarks.shapes import Shape


@dataclass(frozen=True)
class Figures:
    """What a client reports.

    left_out: requests of an open loop that the client itself was too slow to send. others: share of the two
    cores that other programs used.
    """

    rate: float
    p50_us: float
    p90_us: float
    p99_us: float
    left_out: int
    others: float


def by_c(client: str, server: Server, shape: Shape, seconds: float) -> Figures | None:
    """Measure with the client in C; return None, and print the reason, if a request failed."""
    sample = measure_sound(client, server, shape, seconds)
    if sample is None:
        return None
    return Figures(sample.rate, sample.p50_us, sample.p90_us, sample.p99_us, 0, sample.others)


def by_load(server: Server, shape: Shape, seconds: float, folder: Path) -> Figures | None:
    """Measure with `triojam load`; return None, and print the reason, if a request failed."""
    file = folder / "load.json"
    file.write_text("")
    command = [sys.executable, "-m", "triojam", "load", f"127.0.0.1:{server.port}", f"--json={file}"]
    command += [
        f"--connections={shape.connections}",
        f"--duration={seconds}",
        f"--warm-up={warm_up(seconds)}",
    ]
    if shape.rate:
        command.append(f"--rate={shape.rate}")
    done = visit(command, server.pid, seconds + 60)
    found = json.loads(file.read_text() or "{}")
    latency = found.get("latency")
    if done is None or not latency or sum(found["failed"].values()):
        why = found.get("failed") or (done.errors.strip() or done.status if done else "it does not end")
        print(f"triojam load failed, {shape.title}: {why}")
        return None
    # A percentile that a small sample does not carry is missing: the longest latency is its upper bound.
    p50, p90, p99 = (latency.get(name, latency["p100"]) * 1e6 for name in ("p50", "p90", "p99"))
    return Figures(found["rate"], p50, p90, p99, found.get("client_left_out", 0), done.others)
