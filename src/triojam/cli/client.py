"""The clients' side of the command line: one command each, no logic."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter

from triojam.cli import ask, verify
from triojam.cli.common import Commands, NotNegative, Positive, make_app_of, register_all
from triojam.cli.servers import (
    FLAG,
    Ca,
    Cert,
    Key,
    ServerName,
    Servers,
    Tls,
    target_of,
)

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
        Path | None,
        Parameter(
            group=RESULT, allow_leading_hyphen=True, help="File for rate and latencies over time, as CSV."
        ),
    ] = None,
    hgrm: Annotated[
        Path | None,
        Parameter(
            group=RESULT,
            allow_leading_hyphen=True,
            help="File for the latencies as plotters of HdrHistogram read them.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        Parameter(
            group=RESULT,
            allow_leading_hyphen=True,
            help="File for the result as a picture, .svg or .png; needs triojam[plot].",
        ),
    ] = None,
) -> int:
    """Send many requests, check every answer, and show the latencies.

    Exit status: 0 if every request got the right answer (an ERROR line, for a bad line), 1 if not, 3 if the
    servers' counters do not balance with the load, 4 if a goal of --fail is not reached, 130 or 143 if
    interrupted by a signal.
    """
    from triojam.cli.flags.load import (  # noqa: PLC0415  # see above
        check_connections,
        goals_of,
        plan_of,
        trust_of,
    )
    from triojam.cli.flags.metrics import access_of, metrics_urls  # noqa: PLC0415  # see above
    from triojam.cli.flags.outputs import Outputs  # noqa: PLC0415  # see above
    from triojam.load.crew import TICK_SECONDS  # noqa: PLC0415  # see above
    from triojam.load.find import FindRun  # noqa: PLC0415  # see above
    from triojam.load.run import LoadRun  # noqa: PLC0415  # see above

    goals, sought = goals_of(fail, find, requests=requests, metrics=metrics, csv=csv, hgrm=hgrm)
    outputs = Outputs(json=json, csv=csv, hgrm=hgrm, plot=plot, every=every)
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
        return outputs.show_search(FindRun(target, plan, sought, trust=trust, tick=tick))
    job = LoadRun(target, plan, trust=trust, metrics=urls, access=access, tick=tick)
    return outputs.show_load(job, goals)


_COMMANDS: Commands = {
    **ask.COMMANDS,
    load: (
        "localhost",
        "localhost --rate 5000 --duration 60 --fail 'p99<5ms'",
        "localhost --mix TIME:9,HELLO:1 --metrics localhost:45001",
    ),
    **verify.COMMANDS,
}
