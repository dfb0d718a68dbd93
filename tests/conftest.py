"""What most tests share: servers over every transport, of which nothing may be left after each."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.helpers.invariants import Inventory, at_rest
from tests.helpers.servers import Running, start_lane, start_memory, start_tcp, start_tls, until

Start = Callable[..., Awaitable[Running]]


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
    """Start servers, over each transport in turn; afterwards nothing may be left."""
    async for starter in _starter(request.param, nursery):
        yield starter


@pytest.fixture(params=[start_tcp, start_lane, start_tls], ids=["tcp", "lane", "tls"])
async def start_socket(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Start servers on real sockets only, for what memory streams cannot do, such as a reset."""
    async for starter in _starter(request.param, nursery):
        yield starter


@pytest.fixture(params=[start_tcp, start_lane], ids=["tcp", "lane"])
async def start_plain(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Start servers on plain TCP only, for what a client cannot be told before its TLS handshake."""
    async for starter in _starter(request.param, nursery):
        yield starter
