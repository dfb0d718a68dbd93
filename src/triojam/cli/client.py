"""The clients' side of the command line: one command each, no logic."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

from cyclopts import App, Group, Parameter

from triojam.cli import ask, verify
from triojam.cli.common import Commands, NotNegative, Positive, make_app_of, register_all
from triojam.cli.servers import (
    FAILED,
    FLAG,
    Ca,
    Cert,
    Key,
    ServerName,
    Servers,
    Tls,
    parsed,
    run,
    target_of,
)
from triojam.errors import ConfigurationError

if TYPE_CHECKING:
    from triojam.cli.flags.load import Outputs
    from triojam.load.find import FindRun
    from triojam.load.result.goals import Goal
    from triojam.load.run import LoadRun

UNBALANCED = 3
NOT_REACHED = 4

SENDING = Group("What is sent", sort_key=1)
TIMING = Group("When", sort_key=2)
JUDGING = Group("What is expected", sort_key=3)
METRICS = Group("The servers' counters", sort_key=4)
RESULT = Group("The result", sort_key=6)


def make_app() -> App:
    """Make the application that has only these commands."""
    return make_app_of(_COMMANDS)


def register(app: App) -> None:
    """Add the clients' commands to an application."""
    register_all(app, _COMMANDS)


def load(
    server: Servers = "127.0.0.1",
    *,
    connections: Annotated[int, Positive, Parameter(group=SENDING, help="Connections at once.")] = 50,
    mix: Annotated[
        str,
        Parameter(group=SENDING, help="Lines to send: LINE:WEIGHT,…; the line split is TIME in two pieces."),
    ] = "TIME:1",
    pipeline: Annotated[
        int, Positive, Parameter(group=SENDING, help="Requests sent together on each connection.")
    ] = 1,
    per_connection: Annotated[
        bool,
        FLAG,
        Parameter(group=SENDING, help="Open a new connection for each request, or each --pipeline."),
    ] = False,
    requests: Annotated[
        int | None,
        Positive,
        Parameter(group=SENDING, help="Send this many requests instead of running for --duration."),
    ] = None,
    workers: Annotated[
        int, Positive, Parameter(group=SENDING, help="Processes that share the connections and the requests.")
    ] = 1,
    duration: Annotated[
        float | None, Positive, Parameter(group=TIMING, help="Seconds to send for: 10, or 60 with --find.")
    ] = None,
    rate: Annotated[
        str | None,
        Parameter(
            group=TIMING,
            help="Requests a second, due at even times; latency counts from when a request was due. "
            "FIRST:LAST changes the rate evenly.",
        ),
    ] = None,
    think_time: Annotated[
        float, NotNegative, Parameter(group=TIMING, help="Seconds from an answer to the next request.")
    ] = 0.0,
    timeout: Annotated[
        float,
        Positive,
        Parameter(group=TIMING, help="Seconds to wait for a connection, and for the answer to each request."),
    ] = 5.0,
    warm_up: Annotated[
        float,
        NotNegative,
        Parameter(group=TIMING, help="Seconds before --duration; requests are checked, but not measured."),
    ] = 0.0,
    fail: Annotated[
        tuple[str, ...],
        FLAG,
        Parameter(
            group=JUDGING,
            help="A goal, such as p99<5ms, failed<0.1% or rate>1000; exit status 4 if it is not reached.",
        ),
    ] = (),
    find: Annotated[
        str | None,
        Parameter(
            group=JUDGING,
            help="Search for the highest rate within this goal, such as p99<5ms, from --rate (1000) on.",
        ),
    ] = None,
    metrics: Annotated[
        tuple[str, ...],
        FLAG,
        Parameter(
            group=METRICS,
            help="HOST:PORT or URL of metrics, to compare with the load; once for each server.",
        ),
    ] = (),
    metrics_user: Annotated[
        str | None,
        Parameter(
            group=METRICS,
            help="User of the metrics; the password is in --metrics-password-file, or in the variable "
            "TRIOJAM_METRICS_PASSWORD.",
        ),
    ] = None,
    metrics_password_file: Annotated[
        Path | None, Parameter(group=METRICS, help="File with the password of --metrics-user.")
    ] = None,
    metrics_ca: Annotated[
        Path | None,
        Parameter(group=METRICS, help="File with CA certificates (PEM) to trust for https, and no others."),
    ] = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    server_name: ServerName = None,
    every: Annotated[
        float | None, Positive, Parameter(group=RESULT, help="Print a line of progress each EVERY seconds.")
    ] = None,
    json: Annotated[
        Path | None,
        Parameter(
            group=RESULT,
            allow_leading_hyphen=True,
            help="File for the result as JSON; - for standard output.",
        ),
    ] = None,
    csv: Annotated[
        Path | None, Parameter(group=RESULT, help="File for rate and latencies over time, as CSV.")
    ] = None,
    hgrm: Annotated[
        Path | None,
        Parameter(group=RESULT, help="File for the latencies as plotters of HdrHistogram read them."),
    ] = None,
    plot: Annotated[
        Path | None,
        Parameter(group=RESULT, help="File for the result as a picture, .svg or .png; needs triojam[plot]."),
    ] = None,
) -> int:
    """Send many requests, check every answer, and show the latencies.

    Exit status: 0 if every request got the right answer (an ERROR line, for a bad line), 1 if not, 3 if the
    servers' counters do not balance with the load, 4 if a goal of --fail is not reached, 130 if interrupted.
    """
    from triojam.cli.flags.load import (  # noqa: PLC0415  # see above
        Outputs,
        check_connections,
        plan_of,
        sought_goal,
        trust_of,
    )
    from triojam.cli.flags.metrics import access_of, metrics_urls  # noqa: PLC0415  # see above
    from triojam.load.crew import TICK_SECONDS  # noqa: PLC0415  # see above
    from triojam.load.find import FindRun  # noqa: PLC0415  # see above
    from triojam.load.result.goals import Goal  # noqa: PLC0415  # see above
    from triojam.load.run import LoadRun  # noqa: PLC0415  # see above

    goals = [parsed("--fail", Goal.parse, each) for each in fail]
    sought = parsed("--find", sought_goal, find) if find is not None else None
    if sought is not None:
        others = {"--fail": fail, "--requests": requests, "--metrics": metrics, "--csv": csv, "--hgrm": hgrm}
        for option, given in others.items():
            if given:
                raise ConfigurationError(f"{option} is not for --find")
    outputs = Outputs(json=json, csv=csv, hgrm=hgrm, plot=plot)
    outputs.check()
    plan = plan_of(
        search=sought is not None,
        mix=mix,
        rate=rate,
        duration=duration,
        connections=connections,
        pipeline=pipeline,
        visits=per_connection,
        requests=requests,
        workers=workers,
        think_time=think_time,
        patience=timeout,
        warm_up=warm_up,
    )
    check_connections(plan)
    urls = metrics_urls(metrics)
    access = access_of(urls, user=metrics_user, password_file=metrics_password_file, ca=metrics_ca)
    target = target_of("SERVER", server)
    trust = trust_of(target, tls=tls, ca=ca, cert=cert, key=key, name=server_name)
    tick = every or TICK_SECONDS
    if sought is not None:
        return _find(FindRun(target, plan, sought, trust=trust, tick=tick), outputs, every)
    job = LoadRun(target, plan, trust=trust, metrics=urls, access=access, tick=tick)
    return _load(job, goals, outputs, every)


def _load(job: "LoadRun", goals: "list[Goal]", outputs: "Outputs", every: float | None) -> int:
    """Run a load, show and write its result, and return the exit status."""
    from triojam.cli.flags.load import usable_cores  # noqa: PLC0415  # see above
    from triojam.load.result.goals import broken  # noqa: PLC0415  # see above
    from triojam.load.result.text import render  # noqa: PLC0415  # see above

    interrupted = _run(job, outputs, every)
    if (result := job.result) is None:
        return interrupted or FAILED
    print(render(result, cores=usable_cores()), file=_stream(outputs), flush=True)
    missed = broken(goals, result)
    for line in missed:
        print(f"triojam: {line}", file=sys.stderr)
    status = interrupted if result.interrupted else UNBALANCED if result.faults else 0
    status = status or (NOT_REACHED if missed else 0)
    tolerated = any(goal.quantity == "failed" for goal in goals)
    status = status or (0 if result.complete or tolerated else FAILED)
    return _written(partial(outputs.write, result), status)


def _find(job: "FindRun", outputs: "Outputs", every: float | None) -> int:
    """Run a search, show and write what it has found, and return the exit status."""
    from triojam.load.result.found import render  # noqa: PLC0415  # see above

    interrupted = _run(job, outputs, every)
    if (found := job.found) is None:
        return interrupted or FAILED
    print(render(found), file=_stream(outputs), flush=True)
    status = interrupted or (0 if found.search.answer is not None else FAILED)
    return _written(partial(outputs.write_found, found), status)


def _run(job: "LoadRun | FindRun", outputs: "Outputs", every: float | None) -> int:
    """Run a job with its progress; return the exit status of a signal, or 0."""
    from triojam.cli.console import Console  # noqa: PLC0415  # see above
    from triojam.load.progress import bar, lines  # noqa: PLC0415  # see above

    if every is not None:
        status = run(partial(job.run, lines(_stream(outputs))), job.interrupt)
    else:
        # The bar is for a terminal; a file or a pipe gets the result alone.
        console = Console(stderr=True, force_terminal=None if sys.stdout.isatty() else False)
        with bar(console) as show:
            status = run(partial(job.run, show), job.interrupt)
    if job.failure is not None:
        print(f"triojam: {job.failure}", file=sys.stderr)
    return status


def _stream(outputs: "Outputs") -> TextIO:
    return sys.stderr if outputs.takes_stdout else sys.stdout


def _written(write: Callable[[], None], status: int) -> int:
    """Write the files, and return the exit status."""
    try:
        write()
    except BrokenPipeError:
        raise
    except OSError as exc:
        print(f"triojam: {exc.filename}: {exc.strerror}", file=sys.stderr)
        return status or FAILED
    return status


_COMMANDS: Commands = {
    **ask.COMMANDS,
    load: (
        "localhost",
        "localhost --rate 5000 --duration 60 --fail 'p99<5ms'",
        "localhost --requests 9999 --mix TIME:9,HELLO:1 --metrics localhost:45001",
    ),
    **verify.COMMANDS,
}
