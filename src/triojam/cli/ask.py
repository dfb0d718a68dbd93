"""The commands `ask` and `watch`: no logic."""

import sys
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from triojam.cli.common import Commands, Positive
from triojam.cli.servers import (
    FAILED,
    FLAG,
    Ca,
    Servers,
    Timeout,
    Tls,
    Zone,
    run,
    targets_of,
    tls_of,
    zone_of,
)

Precise = Annotated[
    bool,
    FLAG,
    Parameter(help="Watch for the moment at which the answer changes: a bound below a millisecond on a LAN."),
]


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
    from triojam.client.agreement import judge  # noqa: PLC0415  # --help does without Trio, TLS and rich
    from triojam.client.ask import AskOptions, Outcomes, ask_all  # noqa: PLC0415  # see above
    from triojam.client.render import as_json, describe, render, render_one  # noqa: PLC0415  # see above
    from triojam.client.session import Answer  # noqa: PLC0415  # see above

    targets = targets_of(servers)
    options = AskOptions(
        precise=precise, patience=timeout, tls=tls_of(tls=tls, ca=ca), zone=zone_of(timezone)
    )
    outcomes: Outcomes = [None] * len(targets)
    live = sys.stdout.isatty() and not json

    def show(place: int) -> None:
        if live:
            print(render_one(targets, place, outcomes[place]), flush=True)

    interrupted = run(partial(ask_all, targets, options, outcomes, show))
    verdict = judge(outcomes)
    if json:
        print(as_json(targets, outcomes, verdict))
    elif live:
        for place in [place for place, each in enumerate(outcomes) if each is None]:
            show(place)
    else:
        print(render(targets, outcomes))
    if verdict is not None and not json:
        print(describe(targets, verdict))
    if interrupted:
        return interrupted
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
