"""The shapes of load: how many connections ask, and how."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """One way to load a server, in the client's terms."""

    name: str
    title: str
    mode: str
    connections: int
    pipeline: int = 1

    def small(self) -> "Shape":
        """Return the same shape with as few connections as still show a mistake."""
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
    """Return the shapes a comma-separated list names, or all of them for an empty one."""
    if not names:
        return SHAPES
    unknown = [name for name in names.split(",") if name not in BY_NAME]
    if unknown:
        raise SystemExit(f"unknown shapes {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    return tuple(BY_NAME[name] for name in names.split(","))
