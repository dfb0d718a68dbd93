"""What a process does around serving: its signals, its descriptors, its log, its exit status."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial

import trio

from triojam.app import Server, descriptor_limit, open_server
from triojam.logs import LineWriter, LoggerFactory, make_logger_factory
from triojam.settings import ConfigurationError, Settings

if sys.platform != "win32":
    import resource

STDERR = 2

_STOP = {signal.SIGINT, signal.SIGTERM}
_RELOAD = {signal.SIGHUP} if sys.platform != "win32" else set()


def run(settings: Settings, *, reread: Callable[[], Settings]) -> int:
    """Serve until told to stop, and return the exit status.

    0: stopped and drained; 128 + n: a second signal, number n, cut it short.
    reread: reads the settings anew for SIGHUP.

    Raises what `triojam.serve` raises, before anything is served.
    """
    _occupy_standard_descriptors()
    terminal = os.isatty(STDERR)
    style = settings.log_format
    if style == "auto":
        style = "console" if terminal else "json"
    with LineWriter(STDERR) as writer:
        make_logger = make_logger_factory(writer, style=style, colors=terminal)
        return trio.run(partial(_serve, settings, reread, make_logger, writer))


async def _serve(
    settings: Settings,
    reread: Callable[[], Settings],
    make_logger: LoggerFactory,
    writer: LineWriter,
) -> int:
    raised_from = _raise_descriptor_limit()
    with trio.open_signal_receiver(*_STOP, *_RELOAD) as signals:
        server = await open_server(
            settings, make_logger=make_logger, log_messages_dropped=lambda: writer.dropped
        )
        make_logger(settings.log_level).info(
            "file descriptors", limit=descriptor_limit(), raised_from=raised_from
        )
        status = 0
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                nonlocal status
                stopping = False
                async for signum in signals:
                    if signum in _RELOAD:
                        _reload(server, reread)
                    elif stopping:
                        status = 128 + signum
                        nursery.cancel_scope.cancel()
                    else:
                        stopping = True
                        server.drain()

            nursery.start_soon(obey)
            await server.run()
            nursery.cancel_scope.cancel()
        return status


def _reload(server: Server, reread: Callable[[], Settings]) -> None:
    try:
        settings = reread()
    except ConfigurationError as exc:
        server.reload_failed(str(exc))
    else:
        server.reload(settings)


def _occupy_standard_descriptors() -> None:
    """Open what the caller has closed of descriptors 0 to 2, or a client's socket would become our stderr."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)


def _raise_descriptor_limit() -> int:
    """Take as many file descriptors as the system lets this process have; return the old limit."""
    before = descriptor_limit()
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return before
