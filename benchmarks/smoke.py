"""Every shape on every peer for a short time: all answers must be right."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.fleet import Server, all_up, fault
from benchmarks.load import build_client, holding, measure
from benchmarks.registry import Peer
from benchmarks.shapes import Shape


def _complaint(client: str, server: Server, shape: Shape, seconds: float) -> str | None:
    dialogue = server.peer.dialogue
    if shape.mode == "idle":
        with holding(client, server.port, shape, dialogue) as held:
            return None if held == shape.connections else f"held {held} of {shape.connections}"
    sample = measure(client, server.pid, server.port, shape, dialogue, seconds)
    if sample is None:
        return "the client gave up"
    if not sample.right:
        return f"{sample.sent} sent, {sample.answered} answered, {sample.errors} errors"
    return None


def smoke(peers: Sequence[Peer], shapes: Sequence[Shape], seconds: float, build: Path) -> int:
    """Return the number of faults; the speed does not matter."""
    client = build_client(build)
    wrong = 0
    with all_up(peers, build, {}) as servers:
        for server in servers:
            complaints = {"answers": fault(server.port, server.peer.dialogue)}
            for shape in shapes:
                complaints[shape.name] = _complaint(client, server, shape.small(), seconds)
            found = [f"{what}: {why}" for what, why in complaints.items() if why]
            wrong += len(found)
            print(f"{server.peer.title}: {'; '.join(found) or 'right'}")
    return wrong
