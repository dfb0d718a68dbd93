"""Runs a program until it is done or a signal ends it: the server, the lab, and the clients."""

import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from triojam.errors import OperatorError, leaves

Result = TypeVar("Result")

STOP = frozenset({signal.SIGINT, signal.SIGTERM})
HANGUP = frozenset() if sys.platform == "win32" else frozenset({signal.SIGHUP})


def run(
    main: Callable[[], Awaitable[Result]],
    heed: Callable[[int, trio.CancelScope], None],
    signals: Iterable[signal.Signals],
    *,
    ignore_afterwards: bool,
) -> Result | None:
    """Run `main` in Trio, and return its result; None if it was cancelled.

    heed: called with each signal, and with the scope around `main`.
    ignore_afterwards: whether these signals are ignored after the end, so that a signal during the last steps
        does not change the exit status.

    An OperatorError or OSError from `main` is raised alone, not in a group.
    """
    try:
        return trio.run(_run, main, heed, set(signals), ignore_afterwards)
    except BaseExceptionGroup as group:
        first = next(leaves(group))
        if isinstance(first, OperatorError | OSError):
            raise first from None
        raise


async def _run(
    main: Callable[[], Awaitable[Result]],
    heed: Callable[[int, trio.CancelScope], None],
    signals: set[signal.Signals],
    ignore_afterwards: bool,  # noqa: FBT001  # trio.run passes by position
) -> Result | None:
    result: Result | None = None
    if ignore_afterwards:
        for each in signals:  # Trio restores this handler at the end
            signal.signal(each, signal.SIG_IGN)
    with trio.open_signal_receiver(*signals) as received:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for signum in received:
                    heed(signum, nursery.cancel_scope)

            nursery.start_soon(listen)
            result = await main()
            nursery.cancel_scope.cancel()
    return result
