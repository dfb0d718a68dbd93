"""Waiting for another process."""

from collections.abc import Awaitable, Callable

import trio

from tests.helpers.servers import PATIENCE


async def eventually(condition: Callable[[], Awaitable[bool]], *, patience: float = PATIENCE) -> None:
    """Wait until a condition holds that another process fulfils."""
    with trio.fail_after(patience):
        while not await condition():  # noqa: ASYNC110  # another process sets no Event
            await trio.sleep(0.01)
