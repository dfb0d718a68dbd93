"""The clients' side of the command line: one command each, no logic."""

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from triojam.cli import verify
from triojam.cli.common import Commands, NotNegative, Positive, make_app_of, register_all
from triojam.cli.servers import (
    FAILED,
    FLAG,
    INTERRUPTED,
    Ca,
    Servers,
    Timeout,
    Tls,
    Zone,
    check_writable,
    parsed,
    run,
    target_of,
    targets_of,
    tls_of,
    zone_of,
)
from triojam.errors import ConfigurationError, invalid_value

UNBALANCED = 3

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
    from triojam.client.render import as_json, render  # noqa: PLC0415  # see above
    from triojam.client.session import Answer  # noqa: PLC0415  # see above

    targets = targets_of(servers)
    options = AskOptions(
        precise=precise, patience=timeout, tls=tls_of(tls=tls, ca=ca), zone=zone_of(timezone)
    )
    outcomes: Outcomes = [None] * len(targets)
    interrupted = run(partial(ask_all, targets, options, outcomes))
    print(as_json(targets, outcomes) if json else render(targets, outcomes))
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

    watched = [watching.Watched(each) for each in targets_of(servers)]
    options = AskOptions(patience=timeout, tls=tls_of(tls=tls, ca=ca), zone=zone_of(timezone))
    with watching.view(watched, Console()) as show:
        interrupted = run(partial(watching.watch, watched, options, show, interval=interval, count=count))
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
        str | None,
        Parameter(help="HOST:PORT or URL of the server's metrics, to compare its counters with the load."),
    ] = None,
    json: Annotated[Path | None, Parameter(help="File for the result as JSON.")] = None,
    plot: Annotated[
        Path | None, Parameter(help="File for the result as a picture, .svg or .png; needs triojam[plot].")
    ] = None,
    timeout: Timeout = 5.0,
) -> int:
    """Send many requests, check every answer, and show the latencies.

    Exit status: 0 if every request got the right answer (an ERROR line, for a bad line), 1 if not, 3 if the
    server's counters do not balance with the load, 130 if interrupted. By default a server closes a
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
        check_writable(option, file)
    plan = Plan(
        connections=connections,
        seconds=duration,
        requests=requests,
        pipeline=pipeline,
        visits=per_connection,
        rate=rate,
        think_time=think_time,
        patience=timeout,
        mix=parsed("--mix", Mix.parse, mix),
    )
    url = parsed("--metrics", metrics_url, metrics) if metrics is not None else None
    job = LoadRun(target_of("SERVER", server), plan, metrics=url)
    # The bar is for a terminal; a file or a pipe gets the result alone.
    console = Console(stderr=True, force_terminal=None if sys.stdout.isatty() else False)
    with progress(plan, console) as show:
        run(partial(job.run, show), job.interrupt)
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
    **verify.COMMANDS,
}


def _check_plot(file: Path) -> None:
    """Find out before the load, rather than after it."""
    if file.suffix not in (".svg", ".png"):
        raise invalid_value(str(file), "--plot", "a file name that ends in .svg or .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("--plot needs matplotlib: pip install 'triojam[plot]'")
