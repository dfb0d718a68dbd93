"""What must hold whatever is done to a server: nothing of it is left behind, and nobody else notices.

The fixtures of `conftest` hold every server they start to the first, after each test. For the second, a
fault happens while a `good_client` goes on asking.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.helpers.servers import ClientEnd, Running, balanced, receive_exactly, until

# "A well-behaved client keeps being answered within 100 ms", with room for a machine that is shared.
PROMPT = 1.0
JAM_BYTES = len(b"JAM hh:mm:ss\r\n")


@asynccontextmanager
async def good_client(
    connect: Callable[[], Awaitable[ClientEnd]], *, pause: float = 0.0, prompt: float = PROMPT
) -> AsyncIterator[list[float]]:
    """Keep one well-behaved client asking, all along; every answer must come, and come promptly.

    pause: between its questions. prompt: what an answer may take. Both in seconds, as what is yielded: how
    long each answer so far has taken.
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
            # Not with fail_after: where server and client share a loop, what holds it up holds that up, too.
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
    """Wait until all clients are gone; then no trace of them is left, and every request is accounted for."""
    await balanced(server.counters)
    assert server.counters.internal_errors == server.internal_errors
    assert not server.handler._clients
    assert not any(server.handler._deadlines._queues.values())
    if (lane := server.lane) is not None:
        assert not any((lane._active, lane._partials, lane._handovers, lane._sources))


@dataclass(frozen=True)
class Inventory:
    """The tasks of this run of Trio, and the open descriptors of this process with what each is of."""

    tasks: frozenset[trio.lowlevel.Task]
    descriptors: frozenset[tuple[str, str]]

    @classmethod
    def take(cls) -> "Inventory":
        """Look at what there is now."""
        return cls(frozenset(_tasks()), frozenset(_descriptors()))

    def assert_nothing_new(self) -> None:
        """Fail if there is something now that was not there then."""
        now = Inventory.take()
        assert not now.tasks - self.tasks, "tasks are left"
        assert not now.descriptors - self.descriptors, "descriptors are left"


def _tasks() -> list[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found = [root]
    for task in found:  # which grows meanwhile
        found += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def _descriptors() -> list[tuple[str, str]]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append((link.name, str(link.readlink())))
        except FileNotFoundError:  # what this folder is read with
            continue
    return found
