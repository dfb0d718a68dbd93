"""Rounds: each round measures every server once under every shape, in a new random order."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.fleet import Server, up
from benchmarks.load import Sample, holding, measure
from benchmarks.process import private_kib
from benchmarks.registry import MissingError, Peer
from benchmarks.shapes import Shape

SETTLE = 2.0
DISTURBED = 0.05

Samples = dict[str, dict[str, list[Sample | None]]]


@dataclass(frozen=True)
class Idle:
    """The memory of a server with idle connections, and without."""

    connections: int
    before_kib: int
    after_kib: int

    @property
    def each_kib(self) -> float:
        """Memory of one connection, without the kernel's socket buffers."""
        return (self.after_kib - self.before_kib) / self.connections


@dataclass(frozen=True)
class Plan:
    """The number of rounds, their duration, and the retries if other programs used the cores."""

    rounds: int
    seconds: float
    retries: int


class Disturbed(Protocol):
    """A measurement that knows the share of the cores that other programs used."""

    @property
    def others(self) -> float:
        """Share of the two cores."""


Measured = TypeVar("Measured", bound=Disturbed)


def least_disturbed(measure_once: Callable[[], Measured | None], retries: int) -> Measured | None:
    """Measure once, or several times and return the least disturbed measurement; None if one failed.

    Only the CPU time of other programs decides, never the speed of the server.
    """
    best: Measured | None = None
    for _ in range(1 + retries):
        sample = measure_once()
        if sample is None:
            return None
        if best is None or sample.others < best.others:
            best = sample
        if best.others <= DISTURBED:
            break
    return best


def measure_sound(client: str, server: Server, shape: Shape, seconds: float) -> Sample | None:
    """Measure a server; return None, and print the reason, if an answer was wrong or missing."""
    sample = measure(client, server.pid, server.port, shape, server.peer.dialogue, seconds)
    if sample is None or not sample.sound:
        print(f"{server.peer.title} failed: {sample or 'the client gave up'}")
        return None
    return sample


Beside = Callable[[Server], AbstractContextManager[object]]


def play(
    client: str,
    servers: Sequence[Server],
    shapes: Sequence[Shape],
    plan: Plan,
    beside: Beside = lambda _: nullcontext(),
) -> Samples:
    """Measure by shape and peer, one entry per round; None if an answer was wrong or missing.

    beside: runs together with the measurement of a server.

    If the machine is slow for a minute, it is slow for all servers of that minute, so the ratios within a
    round hardly change.
    """
    draw = random.Random(1)
    samples: Samples = {s.name: {v.peer.name: [] for v in servers} for s in shapes}
    for number in range(1, plan.rounds + 1):
        for shape in shapes:
            print(f"round {number} of {plan.rounds}: {shape.title}", flush=True)
            for server in draw.sample(servers, len(servers)):
                once = partial(measure_sound, client, server, shape, plan.seconds)
                with beside(server):
                    samples[shape.name][server.peer.name].append(least_disturbed(once, plan.retries))
    return samples


def hold_idle(client: str, peer: Peer, shape: Shape, build: Path, settle: float = SETTLE) -> Idle | None:
    """Measure a new instance without connections, and then with them."""
    try:
        with up(peer, build) as server:
            time.sleep(settle / 2)
            before = private_kib(server.pid)
            with holding(client, server.port, shape, peer.dialogue) as connections:
                if not connections:
                    return None
                time.sleep(settle)
                return Idle(connections, before, private_kib(server.pid))
    except MissingError:
        return None
