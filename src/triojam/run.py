"""What a process does around serving: its signals, its descriptors, its log, its exit status."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from triojam.activation import take_sockets
from triojam.app import Server, open_server
from triojam.errors import ConfigurationError, OperatorError
from triojam.logs import LineWriter, make_logger_factory, take_over_standard_logging
from triojam.notify import Supervisor
from triojam.settings import Settings
from triojam.sockets import descriptor_limit

if sys.platform != "win32":
    import resource

STDERR = 2
SECOND = 2  # the signal that ends it at once

_STOP = {signal.SIGINT, signal.SIGTERM}
_RELOAD = {signal.SIGHUP} if sys.platform != "win32" else set()


def run(settings: Settings, *, reread: Callable[[], Settings]) -> int:
    """Serve until told to stop, and return the exit status.

    0: stopped and drained; 128 + n: a second signal, number n, cut it short.
    reread: reads the settings anew for SIGHUP.

    Raises what `triojam.serve` raises, before anything is served.
    """
    passed = take_sockets(os.environ, os.getpid())
    supervisor = Supervisor.from_environment(os.environ, os.getpid())
    terminal = os.isatty(STDERR)
    style = settings.log_format
    if style == "auto":
        style = "console" if terminal else "json"
    with LineWriter(STDERR) as writer:
        make_logger = make_logger_factory(writer, style=style, colors=terminal)
        log = make_logger(settings.log_level)
        take_over_standard_logging(lambda: log)
        raised_from = _raise_descriptor_limit()

        async def opening() -> Server:
            server = await open_server(
                settings,
                make_logger=make_logger,
                log_messages_dropped=lambda: writer.dropped,
                passed=passed,
                supervisor=supervisor,
            )
            log.info("file descriptors", limit=descriptor_limit(), raised_from=raised_from)
            return server

        return trio.run(_serve, opening, partial(_reload, reread=reread, supervisor=supervisor))


async def _serve(  # noqa: C901  # every signal, at every stage
    opening: Callable[[], Awaitable[Server]], reload: Callable[[Server], None]
) -> int:
    server: Server | None = None
    failure: Exception | None = None
    signalled: list[int] = []
    early: list[int] = []  # to read the settings again that are just being used for the first time
    for each in _STOP | _RELOAD:
        # What Trio restores in the end: a signal during the last steps must not change the exit status.
        signal.signal(each, signal.SIG_IGN)
    with trio.open_signal_receiver(*_STOP, *_RELOAD) as signals:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                async for signum in signals:
                    if signum in _RELOAD:
                        if server is None:
                            early.append(signum)
                        else:
                            reload(server)
                        continue
                    signalled.append(signum)
                    if server is None or len(signalled) > 1:
                        nursery.cancel_scope.cancel()
                    else:
                        server.drain()

            nursery.start_soon(obey)
            try:
                server = await opening()
            except OperatorError as exc:
                failure = exc  # raised below: out of a nursery it would come in a group
            else:
                if early:
                    nursery.start_soon(_reload_once_serving, server, reload)
                await server.run()
                del signalled[1:]  # a second one that came while the drain was ending cut nothing short
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    drained = server is not None and len(signalled) < SECOND
    return 0 if drained else 128 + signalled[-1]


async def _reload_once_serving(server: Server, reload: Callable[[Server], None]) -> None:
    await server.serving.wait()
    reload(server)


def _reload(server: Server, reread: Callable[[], Settings], supervisor: Supervisor) -> None:
    supervisor.reloading()
    failure = ""
    try:
        server.reload(reread())
    except ConfigurationError as exc:
        failure = str(exc)
        server.reload_failed(failure)
    supervisor.reloaded(failure=failure)


def _raise_descriptor_limit() -> int:
    """Take as many file descriptors as the system lets this process have; return the old limit."""
    before = descriptor_limit()
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return before
