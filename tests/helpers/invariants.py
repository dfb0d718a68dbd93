"""What must hold in every test: a server leaves nothing behind, and a good client gets its answers.

The fixtures of `conftest` check the first after each test. For the second, a test runs a `good_client` during
a fault.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.helpers.servers import ClientEnd, Running, balanced, receive_exactly, until
from tests.helpers.sockets import JAM_BYTES

# The limit for an answer, in seconds. It is 100 ms on a quiet machine.
PROMPT = 1.0


@asynccontextmanager
async def good_client(
    connect: Callable[[], Awaitable[ClientEnd]], *, pause: float = 0.0, prompt: float = PROMPT
) -> AsyncIterator[list[float]]:
    """Run a good client beside the body. Each answer must come in time; the yielded list has all waits.

    pause: between its requests. prompt: the limit for an answer. All times are in seconds.
    """
    client = await connect()
    waits: list[float] = []

    async def ask() -> None:
        while True:
            asked = trio.current_time()
            await client.send_all(b"TIME\r\n")
            answer = await receive_exactly(client, JAM_BYTES)
            assert answer.startswith(b"JAM ")
            assert len(answer) == JAM_BYTES
            # fail_after would not help: the server can block the loop that it shares with this client.
            waits.append(trio.current_time() - asked)
            assert waits[-1] < prompt
            await trio.sleep(pause)

    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        yield waits
        before = len(waits)
        await until(lambda: len(waits) > before)
        nursery.cancel_scope.cancel()


async def at_rest(server: Running) -> None:
    """Wait until all clients are gone, then check that nothing of them is left and the accounts balance."""
    await balanced(server.counters)
    assert server.counters.internal_errors == server.internal_errors
    assert not server.handler._clients
    assert not any(server.handler._deadlines._queues.values())
    if (lane := server.lane) is not None:
        assert not any((lane._active, lane._partials, lane._handovers, lane._sources, lane._relayed))


@dataclass(frozen=True)
class Inventory:
    """The tasks of this run of Trio, and the open descriptors of this process with their targets."""

    tasks: frozenset[trio.lowlevel.Task]
    descriptors: frozenset[tuple[str, str]]

    @classmethod
    def take(cls) -> "Inventory":
        """List what exists now."""
        return cls(frozenset(_tasks()), frozenset(_descriptors()))

    def assert_nothing_new(self) -> None:
        """Fail if something exists now that did not exist before."""
        now = Inventory.take()
        assert not now.tasks - self.tasks, "tasks are left"
        assert not now.descriptors - self.descriptors, "descriptors are left"


def _tasks() -> list[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found = [root]
    for task in found:  # the list grows meanwhile
        found += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def _descriptors() -> list[tuple[str, str]]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append((link.name, str(link.readlink())))
        except FileNotFoundError:  # the descriptor of this folder itself
            continue
    return found
