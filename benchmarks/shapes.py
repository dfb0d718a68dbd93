"""The shapes of load: the number of connections, and how they send requests."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """One kind of load, as options of the client."""

    name: str
    title: str
    mode: str
    connections: int
    pipeline: int = 1
    rate: int = 0

    def small(self) -> "Shape":
        """Return the same shape with few connections, enough to find a wrong answer."""
        return replace(self, connections=min(self.connections, 8))


SHAPES = (
    Shape("one", "1 connection, one request in flight", "closed", 1),
    Shape("fifty", "50 connections, one request in flight each", "closed", 50),
    Shape("thousand", "1,000 connections, one request in flight each", "closed", 1000),
    Shape("pipelined", "50 connections, 16 requests in flight each", "closed", 50, 16),
    Shape("connect-one", "connect, ask, close; one at a time", "connect", 1),
    Shape("connect-twenty", "connect, ask, close; 20 at a time", "connect", 20),
    Shape("mixed", "50 connections, every fourth line in two pieces", "split", 50),
    Shape("idle", "10,000 idle connections", "idle", 10000),
)
BY_NAME = {shape.name: shape for shape in SHAPES}


def chosen(names: str) -> tuple[Shape, ...]:
    """Return the shapes in a comma-separated list, or all shapes for an empty list."""
    if not names:
        return SHAPES
    unknown = [name for name in names.split(",") if name not in BY_NAME]
    if unknown:
        raise SystemExit(f"unknown shapes {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    return tuple(BY_NAME[name] for name in names.split(","))
