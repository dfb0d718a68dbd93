"""Trio in its own thread, for a state machine without async, with a clock that only tests move."""

import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import trio
import trio.testing

T = TypeVar("T")

# In real seconds. Only a failure or a busy machine waits this long.
PATIENCE = 10.0


class TrioThread:
    """Runs functions in one Trio loop until it is closed.

    nursery: for servers; it must be empty at the end. clock: moves only on request.
    """

    nursery: trio.Nursery

    def __init__(self) -> None:
        self.clock = trio.testing.MockClock()
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="trio")
        self._thread.start()
        self._opened.wait()

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run one step, and return its result."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a synchronous function in the thread of the loop."""
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)

    def start_soon(self, function: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """Start a task that runs beside the next steps."""
        self.call(partial(self.nursery.start_soon, function, *arguments))

    def close(self) -> None:
        """End the loop and all its tasks. If an error has ended it before, raise that."""
        with suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _loop(self) -> None:
        try:
            trio.run(self._main, clock=self.clock)
        except BaseException as exc:  # noqa: BLE001  # `close` raises it
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
    """Wait until nothing moves any more, then check `holds`.

    Loopback has nearly always delivered everything by then. The check is repeated for a while, because a busy
    kernel may be late.
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
