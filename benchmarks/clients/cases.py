"""The cases: a load, and a server whose latency is known."""

from dataclasses import dataclass

from benchmarks.registry import TRIOJAM, Peer, delaying
from benchmarks.shapes import Shape

DELAYS_MS = (4, 20, 60)
# The last quarter of each second has no answers: a run of whole seconds has whole stalls.
STALLS = Peer("stalls", "no answers for 0.25 s of each second", delaying(0, 250, 1000))


@dataclass(frozen=True)
class Case:
    """A load on a server."""

    server: Peer
    shape: Shape


def _closed(name: str, connections: int) -> Shape:
    plural = "s" if connections > 1 else ""
    return Shape(f"closed-{name}", f"closed, {connections} connection{plural}", "closed", connections)


def _open(name: str, rate: int) -> Shape:
    return Shape(f"open-{name}", f"open, {rate:,}/s, 50 connections", "open", 50, rate=rate)


def _delaying(delay_ms: int) -> Peer:
    return Peer(f"delay-{delay_ms}", f"answers after {delay_ms} ms", delaying(delay_ms))


CASES = (
    *(Case(TRIOJAM, _closed(str(number), number)) for number in (1, 4, 8, 50)),
    *(Case(_delaying(ms), _closed(f"{ms}ms", 8)) for ms in DELAYS_MS),
    Case(STALLS, _closed("stalls", 8)),
    *(Case(TRIOJAM, _open(str(rate), rate)) for rate in (1000, 5000)),
    *(Case(_delaying(ms), _open(f"{ms}ms", 500)) for ms in DELAYS_MS),
    Case(STALLS, _open("stalls", 500)),
)


def chosen(names: str) -> tuple[Case, ...]:
    """Return the cases in a comma-separated list, or all cases for an empty list."""
    by_name = {case.shape.name: case for case in CASES}
    wanted = names.split(",") if names else by_name
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise SystemExit(f"unknown cases {', '.join(unknown)}; there are {', '.join(by_name)}")
    return tuple(by_name[name] for name in wanted)
