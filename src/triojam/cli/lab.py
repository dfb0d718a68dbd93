"""The lab's command: no logic."""

from math import inf
from typing import Annotated, Literal

from cyclopts import App, Parameter

from triojam.cli.common import Commands, NotNegative, Positive, make_app_of, register_all

# The names of faults.FAULTS, held together by a test: importing them here would slow down --help.
FaultName = Literal["slow-clients", "garbage", "resets", "flood", "clock", "pause"]


def make_app() -> App:
    """Make the application that has only this command."""
    return make_app_of(_COMMANDS)


def register(app: App) -> None:
    """Add the lab's command to an application."""
    register_all(app, _COMMANDS)


def lab(
    *,
    fault: Annotated[
        tuple[FaultName, ...],
        Parameter(
            negative="", show_default=False, help="A fault to cause; several come one after the other."
        ),
    ] = (),
    fault_after: Annotated[
        float,
        NotNegative,
        Parameter(help="Seconds before a fault, from the start or from the end of the last fault."),
    ] = 15.0,
    fault_for: Annotated[float, Positive, Parameter(help="Seconds that a fault lasts.")] = 40.0,
    duration: Annotated[
        float | None, Positive, Parameter(help="Seconds until the end; without it, until Ctrl-C.")
    ] = None,
    rate: Annotated[float, Positive, Parameter(help="Requests a second; a few of them are bad.")] = 50.0,
    speed: Annotated[
        float, Positive, Parameter(help="How many times faster the alert rules run; 1 is their own speed.")
    ] = 15.0,
) -> int:
    """Start a server with everything that watches it, and a gentle load.

    Starts Prometheus with the rules of triojam, Alertmanager, whose alerts are printed, and Grafana with the
    dashboards, if it is installed: all on free ports of loopback and in a temporary directory, which is
    removed at the end. Exit status: 0 at the end of --duration, 1 if a program is missing or fails, 130 if
    interrupted.
    """
    from triojam.lab.run import LabPlan, run  # noqa: PLC0415  # --help is quicker without

    plan = LabPlan(
        seconds=inf if duration is None else duration,
        faults=fault,
        fault_after=fault_after,
        fault_for=fault_for,
        rate=rate,
        speed=speed,
    )
    return run(plan, _say)


def _say(text: str) -> None:
    print(text, flush=True)


_COMMANDS: Commands = {
    lab: (
        "",
        "--fault slow-clients --fault clock",
        "--duration 60 --fault pause --fault-after 5 --fault-for 20",
    ),
}
