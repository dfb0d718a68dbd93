"""What most tests share: servers over each transport. After each test nothing of them may be left."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.helpers.invariants import Inventory, at_rest
from tests.helpers.servers import Running, start_lane, start_memory, start_tcp, start_tls, until
from tests.helpers.sockets import raise_descriptor_limit

Start = Callable[..., Awaitable[Running]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests of a group first: they take longest, and the other workers run the rest beside them.

    A group runs in one worker, so two tests that need a processor of their own never run at the same time.
    """
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail if pytest-xdist does not know the groups: it then runs their tests anywhere, and says nothing."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        for item in session.items:
            group = item.get_closest_marker("xdist_group")
            if group is not None and not item.nodeid.endswith(f"@{group.args[0]}"):
                raise pytest.UsageError(f"pytest-xdist has no group for {item.nodeid}")


@pytest.fixture(scope="session", autouse=True)
def _descriptors() -> None:
    """Let the tests have as many descriptors as this machine allows: some connect hundreds of clients."""
    raise_descriptor_limit()


async def _starter(transport: Start, nursery: trio.Nursery) -> AsyncIterator[Start]:
    started: list[Running] = []
    before = Inventory.take()

    async def start_one(**settings: Any) -> Running:
        server = await transport(nursery, **settings)
        started.append(server)
        return server

    yield start_one
    for server in started:
        await server.close_clients()
        await at_rest(server)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await until(lambda: not nursery.child_tasks)
    before.assert_nothing_new()


@pytest.fixture(params=[start_memory, start_tcp, start_lane, start_tls], ids=["memory", "tcp", "lane", "tls"])
async def start(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Start servers over each transport in turn; afterwards nothing may be left."""
    async for starter in _starter(request.param, nursery):
        yield starter


@pytest.fixture(params=[start_tcp, start_lane, start_tls], ids=["tcp", "lane", "tls"])
async def start_socket(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Start servers on real sockets only: memory streams cannot do everything, such as a reset."""
    async for starter in _starter(request.param, nursery):
        yield starter


@pytest.fixture(params=[start_tcp, start_lane], ids=["tcp", "lane"])
async def start_plain(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Start servers on plain TCP only: before a TLS handshake a client cannot get an error line."""
    async for starter in _starter(request.param, nursery):
        yield starter
