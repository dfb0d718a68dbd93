"""What most tests share: servers over every transport, and the accounts that must balance after each."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.support import Running, balanced, start_lane, start_memory, start_tcp, start_tls

Start = Callable[..., Awaitable[Running]]


async def _starter(transport: Start, nursery: trio.Nursery) -> AsyncIterator[Start]:
    started: list[Running] = []

    async def start_one(**settings: Any) -> Running:
        server = await transport(nursery, **settings)
        started.append(server)
        return server

    yield start_one
    for server in started:
        await server.close_clients()
        await balanced(server.counters)
    nursery.cancel_scope.cancel()


@pytest.fixture(params=[start_memory, start_tcp, start_lane, start_tls], ids=["memory", "tcp", "lane", "tls"])
async def start(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Start servers, over each transport in turn; afterwards all must be accounted for."""
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
