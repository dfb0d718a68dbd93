"""The command that judges servers: no logic."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from triojam.cli.common import Commands, Positive
from triojam.cli.servers import (
    FAILED,
    FLAG,
    Ca,
    Tls,
    Zone,
    run,
    tls_of,
    zone_of,
)
from triojam.errors import ConfigurationError


def _port(_type: type, value: int | None) -> None:
    if value is not None and not 0 < value <= 65_535:
        raise ValueError("a port from 1 to 65535")


Port = Parameter(validator=_port)
GroupName = Literal["exercise", "later", "robust", "strict"]


def verify(
    *servers: Annotated[
        str,
        Parameter(
            help="HOST or HOST:PORT; by default port 45000 of this machine. Submissions, if --command has {}."
        ),
    ],
    command: Annotated[
        str | None,
        Parameter(
            help="Command that starts the server, which is ended afterwards with all its children. Each "
            "submission takes the place of {}, and a free port the place of {port}."
        ),
    ] = None,
    port: Annotated[
        int | None,
        Port,
        Parameter(help="Port on which the server of --command listens; by default 45000."),
    ] = None,
    require: Annotated[
        GroupName, Parameter(help="Last group that must hold for exit status 0.")
    ] = "exercise",
    strict: Annotated[bool, FLAG, Parameter(help="Try triojam's own contract, too.")] = False,
    slow: Annotated[
        bool, FLAG, Parameter(help="Try the deadlines, too, which takes 90 seconds; for --strict.")
    ] = False,
    patience: Annotated[
        float, Positive, Parameter(help="Seconds to wait for a connection or an answer of a slow server.")
    ] = 5.0,
    timezone: Zone = "system",
    tls: Tls = False,
    ca: Ca = None,
    json: Annotated[bool, FLAG, Parameter(help="Print JSON.")] = False,
    md: Annotated[bool, FLAG, Parameter(help="Print Markdown: a table to hand back, with advice.")] = False,
    junit: Annotated[Path | None, Parameter(help="File for the verdicts as JUnit's XML, for CI.")] = None,
    rules: Annotated[bool, FLAG, Parameter(help="Print all rules as Markdown, and judge nothing.")] = False,
) -> int:
    """Judge servers of the protocol, rule by rule, with what was sent, what came back, and the usual cause.

    Connects as a client only, so the server may be written in any language. Exit status: 0 if all required
    rules hold, 1 if not, 130 if interrupted.
    """
    from triojam.cli.console import Console  # noqa: PLC0415  # --help is quicker without
    from triojam.client.files import check_output, write_whole  # noqa: PLC0415  # as above
    from triojam.verify import report as reports_as  # noqa: PLC0415  # as above
    from triojam.verify.judge import Group  # noqa: PLC0415  # as above
    from triojam.verify.rules import RULES  # noqa: PLC0415  # as above
    from triojam.verify.run import Options, Report, judge_all, servers_of  # noqa: PLC0415  # as above

    if rules:
        print(reports_as.page(RULES), end="")
        return 0
    if json and md:
        raise ConfigurationError("--json and --md: expected one of them")
    check_output("--junit", junit)
    found = servers_of(command, servers, port)
    required = list(Group)[: list(Group).index(Group(require)) + 1]
    tried = [rule for rule in RULES if strict or rule.group in required or rule.group is not Group.STRICT]
    options = Options(
        rules=tried, slow=slow, patience=patience, tls=tls_of(tls=tls, ca=ca), zone=zone_of(timezone)
    )
    reports = [Report(each) for each in found]
    console, quiet = Console(highlight=False), json or md
    lines = reports_as.Lines(console, tried)
    progress = Console(stderr=True, highlight=False, force_terminal=None if sys.stdout.isatty() else False)

    def done(report: Report) -> None:
        if len(found) > 1 and not quiet:
            progress.print(
                f"{report.server.name}: {reports_as.summary(report)}", markup=False, soft_wrap=True
            )

    show = lines.show if len(found) == 1 and not quiet else lambda _finding: None
    ended_by = run(partial(judge_all, reports, options, show=show, done=done))
    if json:
        print(reports_as.as_json(reports))
    elif md:
        print(reports_as.as_markdown(reports), end="")
    elif len(found) == 1:
        console.print(f"\n{reports_as.summary(reports[0])}", markup=False)
    else:
        reports_as.print_table(reports, console)
    if junit is not None:
        write_whole(junit, reports_as.as_junit(reports).encode())
    return ended_by or (0 if reports_as.passed(reports, required) else FAILED)


COMMANDS: Commands = {
    verify: (
        "",
        "--command 'python3 server.py'",
        "--command 'python3 {}' --junit grades.xml submissions/*/server.py",
    ),
}
