"""The process around a server: its signals, its descriptor limit, its log, its exit status."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

import trio

from triojam.errors import ConfigurationError
from triojam.process import signals
from triojam.process.logs import LineWriter, make_logger_factory, take_over_standard_logging
from triojam.process.sockets import descriptor_limit
from triojam.process.systemd import ServiceManager, take_sockets
from triojam.server import Server, open_server
from triojam.settings.fields import Settings

if sys.platform != "win32":
    import resource

STDERR = 2
SECOND = 2  # the signal that ends the server at once


def run(settings: Settings, *, reread: Callable[[], Settings]) -> int:
    """Serve until a signal, and return the exit status.

    0: stopped and drained; 128 + n: a second signal, number n, cut the drain short.
    reread: reads the settings again for SIGHUP.

    Raises what `triojam.serve` raises, before anything is served.
    """
    passed = take_sockets(os.environ, os.getpid())
    manager = ServiceManager.from_environment(os.environ, os.getpid())
    terminal = os.isatty(STDERR)
    style = settings.log_format
    if style == "auto":
        style = "console" if terminal else "json"
    server: Server | None = None
    stops: list[int] = []
    drained = False  # a signal after that changes nothing
    # A SIGHUP that comes while settings are read asks for one more reading, and so do several.
    ask_for_reload, reloads = trio.open_memory_channel[None](1)

    def heed(signum: int, scope: trio.CancelScope) -> None:
        if signum in signals.HANGUP:
            with suppress(trio.WouldBlock):
                ask_for_reload.send_nowait(None)
            return
        stops.append(signum)
        if server is None or len(stops) >= SECOND:
            scope.cancel()
        else:
            server.drain()

    with LineWriter(STDERR) as writer:
        make_logger = make_logger_factory(writer, style=style, colors=terminal and _wants_colors(os.environ))
        log = make_logger(settings.log_level)
        take_over_standard_logging(lambda: log)
        raised_from = _raise_descriptor_limit()

        async def run_server(*, task_status: trio.TaskStatus[Server]) -> None:
            nonlocal drained
            await cast(Server, server).run(task_status=task_status)
            drained = True

        async def serve() -> None:
            nonlocal server
            server = await open_server(
                settings,
                make_logger=make_logger,
                log_messages_dropped=lambda: writer.dropped,
                passed=passed,
                manager=manager,
            )
            if raised_from != descriptor_limit():
                log.info("file descriptors raised", limit=descriptor_limit(), raised_from=raised_from)
            async with trio.open_nursery() as beside:
                async with trio.open_nursery() as nursery:
                    await nursery.start(run_server)
                    beside.start_soon(_reload_when_asked, reloads, server, reread, manager)
                beside.cancel_scope.cancel()

        signals.run(serve, heed, signals.STOP | signals.HANGUP, ignore_afterwards=True)
    return 0 if drained else 128 + stops[-1]


async def _reload_when_asked(
    asked: trio.MemoryReceiveChannel[None],
    server: Server,
    reread: Callable[[], Settings],
    manager: ServiceManager,
) -> None:
    async for _ in asked:
        manager.reloading()
        failure = ""
        try:
            await server.reload_from(reread)
        except ConfigurationError as exc:
            failure = str(exc)
        manager.reloaded(failure=failure)


def _wants_colors(environ: Mapping[str, str]) -> bool:
    """Whether the user of this terminal wants colours (no-color.org), and it can show them."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def _raise_descriptor_limit() -> int:
    """Raise the limit of file descriptors as far as the system lets this process; return the old limit."""
    before = descriptor_limit()
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):  # a sandbox, or a system whose hard limit is no limit at all
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return before
