"""The clients' side of the command line: one command each, no logic."""

import importlib.util
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import App, Parameter

from triojam.cli.common import Commands, NotNegative, Positive, make_app_of, register_all
from triojam.errors import ConfigurationError, invalid_value

if TYPE_CHECKING:  # imported when a command runs: --help does without Trio, TLS and rich
    import ssl
    from datetime import tzinfo

    import trio

    from triojam.client.session import Target

Parsed = TypeVar("Parsed")

FAILED = 1
UNBALANCED = 3
INTERRUPTED = 130

FLAG = Parameter(negative="", show_default=False)

Servers = Annotated[str, Parameter(help="HOST or HOST:PORT; without any, port 45000 of this machine.")]
Timeout = Annotated[float, Positive, Parameter(help="Seconds to wait for a connection, and for an answer.")]
Tls = Annotated[bool, FLAG, Parameter(help="Ask over TLS.")]
Ca = Annotated[Path | None, Parameter(help="File with CA certificates (PEM) to trust, and no others.")]
Zone = Annotated[str, Parameter(help="Time zone of the answers: an IANA name, or system for this machine's.")]
Precise = Annotated[
    bool,
    FLAG,
    Parameter(help="Watch for the moment at which the answer changes: a bound below a millisecond on a LAN."),
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
    json: Annotated[bool, FLAG, Parameter(help="Print JSON.")] = False,
    timeout: Timeout = 5.0,
    timezone: Zone = "system",
    tls: Tls = False,
    ca: Ca = None,
) -> int:
    """Ask servers for their time, once.

    Prints each server's time, how far its clock is ahead of this machine's (the true offset lies within the
    bound), the round trip and the address. Exit status: 0 if all have answered, 1 if not.
    """
    from triojam.client.ask import AskOptions, Outcomes, ask_all  # noqa: PLC0415  # see above
    from triojam.client.render import as_json, render, render_one  # noqa: PLC0415  # see above
    from triojam.client.session import Answer  # noqa: PLC0415  # see above

    targets = _targets(servers)
    options = AskOptions(precise=precise, patience=timeout, tls=_tls(tls=tls, ca=ca), zone=_zone(timezone))
    outcomes: Outcomes = [None] * len(targets)
    live = sys.stdout.isatty() and not json

    def show(place: int) -> None:
        if live:
            print(render_one(targets, place, outcomes[place]), flush=True)

    interrupted = _run(partial(ask_all, targets, options, outcomes, show))
    if not live:
        print(as_json(targets, outcomes) if json else render(targets, outcomes))
    for place in [place for place, each in enumerate(outcomes) if each is None and live]:
        print(render_one(targets, place, None))
    if interrupted:
        return INTERRUPTED
    return 0 if all(isinstance(each, Answer) for each in outcomes) else FAILED


def watch(
    *servers: Servers,
    interval: Annotated[float, Positive, Parameter(help="Seconds from one request to the next.")] = 1.0,
    count: Annotated[
        int | None, Positive, Parameter(help="Requests to each server; without it, until Ctrl-C.")
    ] = None,
    timeout: Timeout = 5.0,
    timezone: Zone = "system",
    tls: Tls = False,
    ca: Ca = None,
) -> int:
    """Ask servers again and again, and show their answers.

    A live table on a terminal, a line for each answer elsewhere, and a summary at the end. Exit status: 130
    if interrupted, else 0 if all have answered, 1 if not.
    """
    from rich.console import Console  # noqa: PLC0415  # see above

    from triojam.client import watch as watching  # noqa: PLC0415  # see above
    from triojam.client.ask import AskOptions  # noqa: PLC0415  # see above

    watched = [watching.Watched(each) for each in _targets(servers)]
    options = AskOptions(patience=timeout, tls=_tls(tls=tls, ca=ca), zone=_zone(timezone))
    with watching.view(watched, Console()) as show:
        interrupted = _run(partial(watching.watch, watched, options, show, interval=interval, count=count))
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
        int | None, Positive, Parameter(help="Send this many requests instead of running for --duration.")
    ] = None,
    pipeline: Annotated[int, Positive, Parameter(help="Requests sent together on each connection.")] = 1,
    per_connection: Annotated[
        bool, FLAG, Parameter(help="Open a new connection for each request, or for each --pipeline of them.")
    ] = False,
    rate: Annotated[
        float | None,
        Positive,
        Parameter(help="Requests a second, due at even times; latency counts from when a request was due."),
    ] = None,
    think_time: Annotated[
        float, NotNegative, Parameter(help="Seconds from an answer to the next request.")
    ] = 0.0,
    mix: Annotated[
        str,
        Parameter(help="Lines to send, as LINE:WEIGHT,…; the line split is TIME in two pieces."),
    ] = "TIME:1",
    metrics: Annotated[
        tuple[str, ...],
        FLAG,
        Parameter(help="HOST:PORT or URL of metrics, to compare with the load; once for each server."),
    ] = (),
    json: Annotated[Path | None, Parameter(help="File for the result as JSON.")] = None,
    plot: Annotated[
        Path | None, Parameter(help="File for the result as a picture, .svg or .png; needs triojam[plot].")
    ] = None,
    timeout: Timeout = 5.0,
) -> int:
    """Send many requests, check every answer, and show the latencies.

    Exit status: 0 if every request got the right answer (an ERROR line, for a bad line), 1 if not, 3 if the
    servers' counters do not balance with the load, 130 if interrupted. By default a server closes a
    connection after ten more bad lines than good ones.
    """
    from rich.console import Console  # noqa: PLC0415  # see above

    from triojam.load import report  # noqa: PLC0415  # see above
    from triojam.load.plan import Mix, Plan  # noqa: PLC0415  # see above
    from triojam.load.reconcile import metrics_url  # noqa: PLC0415  # see above
    from triojam.load.run import LoadRun, progress  # noqa: PLC0415  # see above

    if plot is not None:
        _check_plot(plot)
    for option, file in (("--json", json), ("--plot", plot)):
        _check_writable(option, file)
    plan = Plan(
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
    urls = [_parsed("--metrics", metrics_url, each) for each in metrics]
    if len(set(urls)) < len(urls):
        raise invalid_value(", ".join(metrics), "--metrics", "each server only once")
    job = LoadRun(_target("SERVER", server), plan, metrics=urls)
    # The bar is for a terminal; a file or a pipe gets the result alone.
    console = Console(stderr=True, force_terminal=None if sys.stdout.isatty() else False)
    with progress(plan, console) as show:
        _run(partial(job.run, show), job.interrupt)
    if job.failure is not None:
        print(f"triojam: {job.failure}", file=sys.stderr)
        return FAILED
    result = job.result
    if result is None:
        return INTERRUPTED
    print(report.render(result), flush=True)
    status = INTERRUPTED if result.interrupted else UNBALANCED if result.faults else 0
    status = status or (0 if result.complete else FAILED)
    try:
        if json is not None:
            json.write_text(report.as_json(result), "utf-8")
        if plot is not None:
            from triojam.load.plot import save_plot  # noqa: PLC0415  # an extra

            save_plot(result, plot)
    except OSError as exc:
        print(f"triojam: {exc.filename}: {exc.strerror}", file=sys.stderr)
        return status or FAILED
    return status


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
    from triojam.process import signals  # noqa: PLC0415  # see above

    interrupted = False

    def heed(_signum: int, scope: "trio.CancelScope") -> None:
        nonlocal interrupted
        interrupted = True
        if not interrupt():
            scope.cancel()

    signals.run(main, heed, {signal.SIGINT}, ignore_afterwards=False)
    return interrupted


def _targets(servers: tuple[str, ...]) -> "list[Target]":
    return [_target("SERVERS", each) for each in servers or ("127.0.0.1",)]


def _target(name: str, text: str) -> "Target":
    from triojam.client.session import Target  # noqa: PLC0415  # see above

    return _parsed(name, Target.parse, text)


def _parsed(name: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    """Parse an argument with a function whose ValueError says what is expected."""
    try:
        return parse(text)
    except ValueError as exc:
        raise invalid_value(text, name, str(exc)) from exc


def _zone(name: str) -> "tzinfo | None":
    from triojam.settings.zones import load_zone  # noqa: PLC0415  # see above

    try:
        return load_zone(name)
    except ValueError as exc:
        raise invalid_value(name, "--timezone", f"system or an IANA time zone name ({exc})") from exc


def _tls(*, tls: bool, ca: Path | None) -> "ssl.SSLContext | None":
    import ssl  # noqa: PLC0415  # see above

    from triojam.settings.files import new_context  # noqa: PLC0415  # see above
    from triojam.settings.reading import read_bounded  # noqa: PLC0415  # see above

    if not tls and ca is None:
        return None
    try:
        trusted = read_bounded(str(ca)).decode("ascii") if ca is not None else None
        return new_context(ssl.Purpose.SERVER_AUTH, trusted)
    except (OSError, ValueError) as exc:
        if isinstance(exc, ConfigurationError):
            raise
        raise invalid_value(str(ca), "--ca", "a PEM file of certificates") from exc


def _check_writable(option: str, file: Path | None) -> None:
    """Find out before the load, rather than after it."""
    if file is None:
        return
    try:
        file.open("ab").close()
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise invalid_value(str(file), option, f"a file that can be written ({reason})") from exc


def _check_plot(file: Path) -> None:
    """Find out before the load, rather than after it."""
    if file.suffix not in (".svg", ".png"):
        raise invalid_value(str(file), "--plot", "a file name that ends in .svg or .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("--plot needs matplotlib: pip install 'triojam[plot]'")
