"""The clients' side of the command line: one command each, no logic."""

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from triojam.cli import ask, verify
from triojam.cli.common import Commands, NotNegative, Positive, make_app_of, register_all
from triojam.cli.servers import (
    FAILED,
    FLAG,
    Servers,
    Timeout,
    check_writable,
    parsed,
    run,
    target_of,
)
from triojam.errors import ConfigurationError, invalid_value

UNBALANCED = 3


def make_app() -> App:
    """Make the application that has only these commands."""
    return make_app_of(_COMMANDS)


def register(app: App) -> None:
    """Add the clients' commands to an application."""
    register_all(app, _COMMANDS)


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
    from triojam.cli.console import Console  # noqa: PLC0415  # see above
    from triojam.load.plan import Mix, Plan  # noqa: PLC0415  # see above
    from triojam.load.readings import metrics_url  # noqa: PLC0415  # see above
    from triojam.load.result import text  # noqa: PLC0415  # see above
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
    urls = [parsed("--metrics", metrics_url, each) for each in metrics]
    if len(set(urls)) < len(urls):
        raise invalid_value(", ".join(metrics), "--metrics", "each server only once")
    job = LoadRun(target_of("SERVER", server), plan, metrics=urls)
    # The bar is for a terminal; a file or a pipe gets the result alone.
    console = Console(stderr=True, force_terminal=None if sys.stdout.isatty() else False)
    with progress(plan, console) as show:
        interrupted = run(partial(job.run, show), job.interrupt)
    if job.failure is not None:
        print(f"triojam: {job.failure}", file=sys.stderr)
        return FAILED
    result = job.result
    if result is None:
        return interrupted
    print(text.render(result), flush=True)
    status = interrupted if result.interrupted else UNBALANCED if result.faults else 0
    status = status or (0 if result.complete else FAILED)
    try:
        if json is not None:
            json.write_text(text.as_json(result), "utf-8")
        if plot is not None:
            from triojam.load.result.plot import save_plot  # noqa: PLC0415  # an extra

            save_plot(result, plot)
    except OSError as exc:
        print(f"triojam: {exc.filename}: {exc.strerror}", file=sys.stderr)
        return status or FAILED
    return status


_COMMANDS: Commands = {
    **ask.COMMANDS,
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
