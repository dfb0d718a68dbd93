"""Web listeners without a time service, over TCP and TLS. After each test, they must be at rest."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.helpers.web import Web

StartWeb = Callable[..., Awaitable[Web]]


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def start_web(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[StartWeb]:
    """Start web listeners over each transport in turn."""
    started: list[Web] = []

    async def start(**options: Any) -> Web:
        web = Web(**{"tls": request.param} | options)
        await nursery.start(web.serve)
        started.append(web)
        return web

    yield start
    for web in started:
        if not (web.stop.is_set() or web.passwords):
            await web.at_rest()
        await web.close_clients()
        web.stop.set()
        await web.stopped.wait()
        assert web.places == 0
        assert web.failures == 0


@pytest.fixture
async def listener(start_web: StartWeb) -> Web:
    """A web listener without passwords."""
    return await start_web()
