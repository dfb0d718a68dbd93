"""The lab's command: no logic."""

from math import inf
from typing import Annotated, Literal

from cyclopts import App, Parameter

from triojam.cli.common import Commands, NotNegative, PortNumber, Positive, make_app_of, register_all

# The names of faults.FAULTS, held together by a test: importing them here would slow down --help.
FaultName = Literal["slow-clients", "garbage", "resets", "flood", "clock", "pause", "kill"]
Word = Literal[FaultName, "mystery", "stop"]


def _fleet(_type: type, value: int | None) -> None:
    if value is not None and not 2 <= value <= 5:
        raise ValueError("a number from 2 to 5")


def make_app() -> App:
    """Make the application that has only this command."""
    return make_app_of(_COMMANDS)


def register(app: App) -> None:
    """Add the lab's command to an application."""
    register_all(app, _COMMANDS)


def lab(
    *,
    fleet: Annotated[
        int | None,
        Parameter(validator=_fleet, help="Start this many servers, 2 to 5, behind HAProxy, instead of one."),
    ] = None,
    fault: Annotated[
        tuple[FaultName, ...],
        Parameter(
            negative="", show_default=False, help="A fault to cause; several come one after the other."
        ),
    ] = (),
    mystery: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Cause a random fault, after the others, and name it at its end.",
        ),
    ] = False,
    inject: Annotated[
        Word | None,
        Parameter(help="Start nothing: cause a fault in a lab that already runs, or stop the one it has."),
    ] = None,
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
    bind: Annotated[
        str, Parameter(help="Address to listen on; 0.0.0.0 shows the lab to other machines, too.")
    ] = "127.0.0.1",
    port: Annotated[int, PortNumber, Parameter(help="Port of the time service; 0 is any free port.")] = 0,
    metrics_port: Annotated[int, PortNumber, Parameter(help="The same for live page and metrics.")] = 0,
    prometheus_port: Annotated[int, PortNumber, Parameter(help="The same for Prometheus.")] = 0,
    grafana_port: Annotated[int, PortNumber, Parameter(help="The same for Grafana.")] = 0,
    runbooks_port: Annotated[int, PortNumber, Parameter(help="The same for the runbooks.")] = 0,
    seed: Annotated[
        int | None, Parameter(help="Choose the same mystery in each lab; without it, another one.")
    ] = None,
) -> int:
    """Start a server, or a fleet, with everything that watches it, and a gentle load.

    Starts Prometheus with the rules of triojam, Alertmanager, whose alerts are printed, and Grafana with the
    dashboards, if it is installed: all on free ports of loopback and in a temporary directory, which is
    removed at the end. Typing the name of a fault causes it; `help` lists the words. Exit status: 0 at the
    end of --duration, 1 if a program is missing or fails, 2 if a word is wrong, 130 if interrupted.
    """
    from triojam.lab.run import LabPlan, run, tell  # noqa: PLC0415  # --help is quicker without

    if inject is not None:
        return tell(inject, _say)

    plan = LabPlan(
        fleet=fleet or 1,
        seconds=inf if duration is None else duration,
        faults=(*fault, "mystery") if mystery else fault,
        fault_after=fault_after,
        fault_for=fault_for,
        rate=rate,
        speed=speed,
        bind=bind,
        ports={
            "--port": port,
            "--metrics-port": metrics_port,
            "--prometheus-port": prometheus_port,
            "--grafana-port": grafana_port,
            "--runbooks-port": runbooks_port,
        },
        seed=seed,
    )
    return run(plan, _say)


def _say(text: str) -> None:
    print(text, flush=True)


_COMMANDS: Commands = {
    lab: (
        "",
        "--fault slow-clients --fault clock --fault-for 20",
        "--fleet 3 --fault kill",
    ),
}
