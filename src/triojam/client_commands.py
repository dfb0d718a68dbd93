"""The clients' side of the command line: one command each, no logic."""

import importlib.util
import random
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import trio
from cyclopts import App, Parameter

from triojam.asking import Manner, Outcomes, as_json, ask_all, render
from triojam.client import Answer, Target
from triojam.commands import Commands, NotNegative, Positive, make_app_of, register_all
from triojam.errors import ConfigurationError

if TYPE_CHECKING:
    from triojam.report import Result

Parsed = TypeVar("Parsed")

FAILED = 1
UNBALANCED = 3
INTERRUPTED = 130

Servers = Annotated[str, Parameter(help="HOST or HOST:PORT; this machine's port 45000 without any.")]
Timeout = Annotated[float, Positive, Parameter(help="Seconds to wait for a connection, and for an answer.")]
Tls = Annotated[bool, Parameter(negative="", show_default=False, help="Ask over TLS.")]
Ca = Annotated[Path | None, Parameter(help="Trust this CA's certificates (PEM), rather than the system's.")]
Zone = Annotated[str, Parameter(help="Time zone the servers answer in; system is this machine's.")]
Precise = Annotated[
    bool,
    Parameter(
        negative="",
        show_default=False,
        help="Watch for the moment the answer changes: well under a millisecond on a LAN.",
    ),
]


def make_app() -> App:
    """Make the application that has only these commands."""
    return make_app_of(_COMMANDS)


def register(app: App) -> None:
    """Add the clients' commands to an application."""
    register_all(app, _COMMANDS)


def ask(
    *servers: Servers,
    precise: Precise = False,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print JSON.")] = False,
    timeout: Timeout = 5.0,
    timezone: Zone = "system",
    tls: Tls = False,
    ca: Ca = None,
) -> int:
    """Ask servers for their time, once.

    Prints what each said, how far its clock is ahead of this machine's (the truth lies within the bound), the
    round trip and the address. Exit status: 0 if all have answered, 1 if not.
    """
    targets = _targets(servers)
    manner = Manner(precise=precise, patience=timeout, tls=_tls(tls=tls, ca=ca), zone=_zone(timezone))
    outcomes: Outcomes = [None] * len(targets)
    interrupted = _run(partial(ask_all, targets, manner, outcomes))
    print(as_json(targets, outcomes) if json else render(targets, outcomes))
    if interrupted:
        return INTERRUPTED
    return 0 if all(isinstance(each, Answer) for each in outcomes) else FAILED


def watch(
    *servers: Servers,
    interval: Annotated[float, Positive, Parameter(help="Seconds from one question to the next.")] = 1.0,
    count: Annotated[
        int | None, Positive, Parameter(help="Ask each server so often; without it, until Ctrl-C.")
    ] = None,
    timeout: Timeout = 5.0,
    timezone: Zone = "system",
    tls: Tls = False,
    ca: Ca = None,
) -> int:
    """Ask servers again and again, and show how they do.

    A live table on a terminal, a line for each answer elsewhere, and a summary at the end. Exit status: 130
    if interrupted, else 0 if all have answered, 1 if not.
    """
    from rich.console import Console  # noqa: PLC0415  # `ask` is quicker without

    from triojam import watching  # noqa: PLC0415  # as above

    watched = [watching.Watched(each) for each in _targets(servers)]
    manner = Manner(patience=timeout, tls=_tls(tls=tls, ca=ca), zone=_zone(timezone))
    with watching.view(watched, Console()) as show:
        interrupted = _run(partial(watching.watch, watched, manner, show, interval=interval, count=count))
    print(watching.summary(watched))
    if interrupted:
        return INTERRUPTED
    return FAILED if any(each.failed for each in watched) else 0


def load(
    server: Servers = "127.0.0.1",
    *,
    connections: Annotated[int, Positive, Parameter(help="Connections at once.")] = 50,
    duration: Annotated[float, Positive, Parameter(help="Seconds to send for.")] = 10.0,
    requests: Annotated[
        int | None, Positive, Parameter(help="Send so many instead, however long it takes.")
    ] = None,
    pipeline: Annotated[int, Positive, Parameter(help="Requests sent together on each connection.")] = 1,
    per_connection: Annotated[
        bool, Parameter(negative="", show_default=False, help="Connect, ask, close, each time anew.")
    ] = False,
    rate: Annotated[
        float | None,
        Positive,
        Parameter(help="Requests a second that are due whatever the server does; latency counts from then."),
    ] = None,
    think_time: Annotated[
        float, NotNegative, Parameter(help="Seconds from an answer to the next request.")
    ] = 0.0,
    mix: Annotated[
        str, Parameter(help="What to send, as KIND:WEIGHT,…; a kind is a line, or split: TIME in two pieces.")
    ] = "TIME:1",
    metrics: Annotated[
        str | None, Parameter(help="HOST:PORT or URL of the server's metrics, to hold against the load.")
    ] = None,
    json: Annotated[Path | None, Parameter(help="Write the result to this file, too.")] = None,
    plot: Annotated[
        Path | None, Parameter(help="Draw it to this .svg or .png file; needs triojam[plot].")
    ] = None,
    timeout: Timeout = 5.0,
) -> int:
    """Send many requests, check every answer, and show how long they took.

    Exit status: 0 if every request got the answer it should get (for a bad line that is an ERROR), 1 if not,
    3 if the server's counters do not balance with what was sent, 130 if interrupted. A server closes a
    connection after ten bad lines more than good ones, by default.
    """
    from rich.console import Console  # noqa: PLC0415  # `ask` is quicker without

    from triojam import balance, loading, report, schedule  # noqa: PLC0415  # as above
    from triojam.mix import Mix  # noqa: PLC0415  # as above

    if plot is not None:
        _check_plot(plot)
    for option, file in (("--json", json), ("--plot", plot)):
        _check_writable(option, file)
    plan = schedule.Plan(
        connections=connections,
        seconds=duration,
        requests=requests,
        pipeline=pipeline,
        visits=per_connection,
        rate=rate,
        think_time=think_time,
        patience=timeout,
        mix=_parsed("--mix", Mix.parse, mix),
    )
    target = _parsed("SERVER", Target.parse, server)
    url = _parsed("--metrics", balance.metrics_url, metrics) if metrics is not None else None
    job = loading.Loading(target, plan, metrics=url, chance=random.Random())  # noqa: S311  # no secret
    # The bar is for who looks on; what is printed to a file or a pipe is the result alone.
    with loading.progress(
        plan, Console(stderr=True, force_terminal=None if sys.stdout.isatty() else False)
    ) as show:
        _run(partial(job.run, show), job.interrupt)
    if job.failure is not None:
        print(f"triojam: {job.failure}", file=sys.stderr)
        return FAILED
    result = job.result
    if result is None:
        return INTERRUPTED
    print(report.render(result), flush=True)
    status = _status(result)
    try:
        if json is not None:
            json.write_text(report.as_json(result), "utf-8")
        if plot is not None:
            from triojam.plot import save_plot  # noqa: PLC0415  # an extra

            save_plot(result, plot)
    except OSError as exc:
        print(f"triojam: {exc.filename}: {exc.strerror}", file=sys.stderr)
        return status or FAILED
    return status


def _status(result: "Result") -> int:
    if result.interrupted:
        return INTERRUPTED
    if result.faults:
        return UNBALANCED
    return 0 if result.complete else FAILED


_COMMANDS: Commands = {
    ask: ("", "time.example.org 192.0.2.1:4500 '[::1]:45000'", "--precise --json time.example.org"),
    watch: (
        "time.example.org 192.0.2.1:4500",
        "--interval 0.2 localhost",
        "--count 10 localhost | tee watch.log",
    ),
    load: (
        "localhost",
        "localhost --rate 5000 --duration 60 --plot latency.svg",
        "localhost --requests 1000000 --mix TIME:90,HELLO:5,split:5 --metrics localhost:45001",
    ),
}


def _run(main: Callable[[], Awaitable[None]], interrupt: Callable[[], bool] = lambda: False) -> bool:
    """Run until it is done or interrupted; whether it was interrupted.

    interrupt: is called at Ctrl-C, and tells whether `main` is about to end by itself.
    """
    interrupted = False

    async def stoppable() -> None:
        async with trio.open_nursery() as nursery:

            async def heed(*, task_status: trio.TaskStatus[None]) -> None:
                nonlocal interrupted
                with trio.open_signal_receiver(signal.SIGINT) as signals:
                    task_status.started()
                    async for _ in signals:
                        interrupted = True
                        if not interrupt():
                            nursery.cancel_scope.cancel()

            await nursery.start(heed)
            await main()
            nursery.cancel_scope.cancel()

    try:
        trio.run(stoppable)
    except BaseExceptionGroup as group:
        leaf = _leaf(group)
        if isinstance(leaf, OSError):  # what was to be printed cannot be written
            raise leaf from None
        raise
    return interrupted


def _leaf(exc: BaseException) -> BaseException:
    return _leaf(exc.exceptions[0]) if isinstance(exc, BaseExceptionGroup) else exc


def _targets(servers: tuple[str, ...]) -> list[Target]:
    return [_parsed("SERVERS", Target.parse, each) for each in servers or ("127.0.0.1",)]


def _parsed(name: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    try:
        return parse(text)
    except ValueError as exc:
        raise ConfigurationError(f"{name}: {exc}") from exc


def _zone(name: str) -> ZoneInfo | None:
    if name == "system":
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:  # a path out of the tree; a folder
        raise ConfigurationError(
            f"--timezone: {name!r} is not what it takes: system or an IANA name"
        ) from exc


def _tls(*, tls: bool, ca: Path | None) -> ssl.SSLContext | None:
    if not tls and ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigurationError(
            f"--ca: {str(ca)!r} is not what it takes: a PEM file of certificates"
        ) from exc


def _check_writable(option: str, file: Path | None) -> None:
    """Find out before the load, rather than after it."""
    if file is None:
        return
    try:
        file.open("ab").close()
    except OSError as exc:
        raise ConfigurationError(f"{option}: {str(file)!r} cannot be written: {exc.strerror}") from exc


def _check_plot(file: Path) -> None:
    """Find out before the load, rather than after it."""
    if file.suffix not in (".svg", ".png"):
        raise ConfigurationError(f"--plot: {str(file)!r} is not what it takes: a file name in .svg or .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("--plot: needs matplotlib: pip install 'triojam[plot]'")
