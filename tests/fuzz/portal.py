"""Trio in a thread of its own, for a machine that cannot wait, with a clock that stands still."""

import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import trio
import trio.testing

T = TypeVar("T")

# In real seconds; only a failure waits so long, or a machine that has something else to do.
PATIENCE = 10.0


class Portal:
    """Runs what it is given in one Trio loop, until it is closed.

    nursery: for servers; it must be empty when the portal is closed. clock: moves only when it is told to.
    """

    nursery: trio.Nursery

    def __init__(self) -> None:
        self.clock = trio.testing.MockClock()
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="portal")
        self._thread.start()
        self._opened.wait()

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run one step, and return its result."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call what does not wait, in the loop's thread."""
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)

    def start_soon(self, function: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """Run something beside the steps to come."""
        self.call(partial(self.nursery.start_soon, function, *arguments))

    def close(self) -> None:
        """End the loop, whatever still runs in it, and raise what ended it before, if anything did."""
        with suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _loop(self) -> None:
        try:
            trio.run(self._main, clock=self.clock)
        except BaseException as exc:  # noqa: BLE001  # it is raised where the portal is closed
            self._failure = exc
        finally:
            self._opened.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with trio.open_nursery() as self.nursery:
            self._opened.set()
            await self._stop.wait()
            self.nursery.cancel_scope.cancel()


async def settled(holds: Callable[[], None]) -> None:
    """Wait until nothing moves any more, and hold what must be true by then against it.

    What was sent on loopback has nearly always arrived by then. It is looked at again for a while, lest a
    busy kernel be taken for a failure.
    """
    latest = time.monotonic() + PATIENCE
    while True:
        await trio.testing.wait_all_tasks_blocked()
        try:
            return holds()
        except AssertionError:
            if time.monotonic() > latest:
                raise
        await trio.testing.wait_all_tasks_blocked(0.001)
