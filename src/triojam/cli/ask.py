"""The commands `ask` and `watch`: no logic."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from triojam.cli.common import Commands, Positive
from triojam.cli.servers import (
    FAILED,
    FLAG,
    Ca,
    Cert,
    Key,
    ServerName,
    Servers,
    Timeout,
    Tls,
    Zone,
    run,
    targets_of,
    tls_of,
    zone_of,
)
from triojam.errors import ConfigurationError

if TYPE_CHECKING:
    from triojam.client.ask import Outcomes
    from triojam.client.session import Target

BEYOND = 4

# In seconds. One answer tells an offset only to half a second.
PRECISE_BELOW = 1.0

Precise = Annotated[
    bool,
    FLAG,
    Parameter(help="Watch for the moment at which the answer changes: a bound below a millisecond on a LAN."),
]


def ask(
    *servers: Servers,
    precise: Precise = False,
    json: Annotated[bool, FLAG, Parameter(help="Print JSON.")] = False,
    max_offset: Annotated[
        float | None,
        Positive,
        Parameter(help="Seconds that an offset may have; below 1, the servers are asked precisely."),
    ] = None,
    nagios: Annotated[
        bool,
        FLAG,
        Parameter(help="Be a plugin for Nagios: one line with performance data, and its statuses."),
    ] = False,
    timeout: Timeout = 5.0,
    timezone: Zone = "system",
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    server_name: ServerName = None,
) -> int:
    """Ask servers for their time, once.

    Prints each server's time, how far its clock is ahead of this machine's (the true offset lies within the
    bound), the round trip and the address. Exit status: 0 if all have answered, 1 if not, 4 if an offset is,
    or may be, beyond --max-offset.
    """
    from triojam.client.ask import AskOptions, Outcomes, ask_all  # noqa: PLC0415  # --help does without TLS
    from triojam.client.render import render_one  # noqa: PLC0415  # see above
    from triojam.client.verdicts.threshold import nagios as as_plugin  # noqa: PLC0415  # see above

    if nagios and json:
        raise ConfigurationError("--nagios and --json print different things: expected one of them")
    targets = targets_of(servers)
    precise = precise or (max_offset is not None and max_offset < PRECISE_BELOW)
    options = AskOptions(
        precise=precise,
        patience=timeout,
        tls=tls_of(tls=tls, ca=ca, cert=cert, key=key, name=server_name),
        name=server_name,
        zone=zone_of(timezone),
    )
    outcomes: Outcomes = [None] * len(targets)
    live = sys.stdout.isatty() and not (json or nagios)

    def show(place: int) -> None:
        if live:
            print(render_one(targets, place, outcomes[place]), flush=True)

    interrupted = run(partial(ask_all, targets, options, outcomes, show))
    if nagios:
        status, line = as_plugin(targets, outcomes, max_offset)
        print(line)
        return status
    for place in [place for place, each in enumerate(outcomes) if each is None]:
        show(place)
    _print_results(targets, outcomes, json=json, lines=not live)
    return interrupted or _judge_offsets(targets, outcomes, max_offset)


def _print_results(targets: "list[Target]", outcomes: "Outcomes", *, json: bool, lines: bool) -> None:
    """Print the results as JSON; or as lines, if they are not printed yet, and which server is wrong."""
    from triojam.client.render import as_json, describe, render  # noqa: PLC0415  # see above
    from triojam.client.verdicts.agreement import judge  # noqa: PLC0415  # see above

    verdict = judge(outcomes)
    if json:
        print(as_json(targets, outcomes, verdict))
        return
    if lines:
        print(render(targets, outcomes))
    if verdict is not None:
        print(describe(targets, verdict))


def _judge_offsets(targets: "list[Target]", outcomes: "Outcomes", limit: float | None) -> int:
    """Name the servers whose offset is, or may be, beyond the limit, and return the exit status."""
    from triojam.client.session import Answer  # noqa: PLC0415  # see above
    from triojam.client.verdicts.threshold import Nearness, describe_offset, nearness  # noqa: PLC0415  # see above

    status = 0
    for target, each in zip(targets, outcomes, strict=True):
        if isinstance(each, Answer) and nearness(each, limit) is not Nearness.WITHIN:
            print(f"triojam: {target}: {describe_offset(each, limit)}", file=sys.stderr)
            status = BEYOND
    return status if all(isinstance(each, Answer) for each in outcomes) else FAILED


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
    cert: Cert = None,
    key: Key = None,
    server_name: ServerName = None,
) -> int:
    """Ask servers again and again, and show their answers.

    A live table on a terminal, a line for each answer elsewhere, and a summary at the end. Exit status: 130
    if interrupted, else 0 if all have answered, 1 if not.
    """
    from triojam.cli.console import Console  # noqa: PLC0415  # see above
    from triojam.client import watch as watching  # noqa: PLC0415  # see above
    from triojam.client.ask import AskOptions  # noqa: PLC0415  # see above

    watched = [watching.Watched(each) for each in targets_of(servers)]
    options = AskOptions(
        patience=timeout,
        tls=tls_of(tls=tls, ca=ca, cert=cert, key=key, name=server_name),
        name=server_name,
        zone=zone_of(timezone),
    )
    with watching.view(watched, Console()) as show:
        interrupted = run(partial(watching.watch, watched, options, show, interval=interval, count=count))
    print(watching.summary(watched))
    if interrupted:
        return interrupted
    return FAILED if any(each.failed for each in watched) else 0


COMMANDS: Commands = {
    ask: ("", "time.example.org 192.0.2.1:4500 '[::1]:45000'", "--precise --json time.example.org"),
    watch: (
        "time.example.org 192.0.2.1:4500",
        "--interval 0.2 localhost",
        "--count 10 localhost | tee watch.log",
    ),
}
