"""The process around a server: its signals, its descriptor limit, its log, its exit status."""

import os
import sys
from collections.abc import Callable

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
    reload_is_due = False  # a SIGHUP came while the settings were used for the first time

    def heed(signum: int, scope: trio.CancelScope) -> None:
        nonlocal reload_is_due
        if signum in signals.HANGUP:
            if server is None:
                reload_is_due = True
            else:
                _reload(server, reread, manager)
            return
        stops.append(signum)
        if server is None or len(stops) >= SECOND:
            scope.cancel()
        else:
            server.drain()

    with LineWriter(STDERR) as writer:
        make_logger = make_logger_factory(writer, style=style, colors=terminal)
        log = make_logger(settings.log_level)
        take_over_standard_logging(lambda: log)
        raised_from = _raise_descriptor_limit()

        async def serve() -> bool:
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
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)
                if reload_is_due:
                    _reload(server, reread, manager)
            return True

        drained = signals.run(serve, heed, signals.STOP | signals.HANGUP, ignore_afterwards=True)
    return 0 if drained else 128 + stops[-1]


def _reload(server: Server, reread: Callable[[], Settings], manager: ServiceManager) -> None:
    manager.reloading()
    failure = ""
    try:
        server.reload(reread())
    except ConfigurationError as exc:
        failure = str(exc)
        server.reload_failed(failure)
    manager.reloaded(failure=failure)


def _raise_descriptor_limit() -> int:
    """Raise the limit of file descriptors as far as the system lets this process; return the old limit."""
    before = descriptor_limit()
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return before
