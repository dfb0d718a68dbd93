"""A lab: a server, the programs that watch it, a gentle load, and faults on purpose.

All of it runs in one nursery and one temporary directory, and ends with them.
"""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from math import inf
from pathlib import Path

import trio

from triojam.errors import LabError
from triojam.lab import alerts
from triojam.lab.configuration import make_alertmanager, make_grafana, make_prometheus, make_server
from triojam.lab.faults import FAULTS, Target, run_load
from triojam.lab.programs import (
    ALERTMANAGER,
    GRAFANA,
    LOOPBACK,
    PROMETHEUS,
    Program,
    ServerProgram,
    find,
    find_all,
)
from triojam.load.plan import Mix, Plan
from triojam.process import signals

LINE_TIMEOUT = 2.0
MAX_CONNECTIONS = 200
# Low limits: a fault reaches them in seconds, without all of the machine's capacity.
SETTINGS = {
    "host": LOOPBACK,
    "port": 0,
    "metrics_port": 0,
    "line_timeout": LINE_TIMEOUT,
    "max_connections": MAX_CONNECTIONS,
    "grace": 1.0,
}
LOAD_CONNECTIONS = 10
LOAD_MIX = "TIME:92,TIME please:3,split:3,HELLO:1,time:1"
LOAD_PATIENCE = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LabPlan:
    """What a lab does.

    seconds: its duration. faults: their names, in order; each starts `fault_after` seconds after the start of
    the lab or the end of the last fault, and lasts `fault_for` seconds. rate: requests a second. speed: the
    factor by which the rules are faster.
    """

    seconds: float = inf
    faults: Sequence[str] = ()
    fault_after: float = 15.0
    fault_for: float = 40.0
    rate: float = 50.0
    speed: float = 15.0


def find_dashboards() -> Path:
    """Return the folder of rules and dashboards, in the installed package or in the checkout."""
    package = Path(str(resources.files("triojam")))
    for folder in (package / "dashboards", package.parents[1] / "dashboards"):
        if folder.is_dir():
            return folder
    raise LabError("lab: the folder dashboards is missing; was triojam installed without its wheel?")


def run(plan: LabPlan, say: Say) -> int:
    """Run a lab, and return the exit status: 0, or 128 + n if signal n ended it.

    Raises LabError, and what `say` raises.
    """
    lab = _Lab(plan, say)
    received: list[int] = []

    def end(signum: int, scope: trio.CancelScope) -> None:
        received.append(signum)
        scope.cancel()

    signals.run(lab.run, end, signals.STOP | signals.HANGUP, ignore_afterwards=True)
    return 128 + received[0] if received else 0


class _Lab:
    def __init__(self, plan: LabPlan, say: Say) -> None:
        self._plan = plan
        self._say = say
        self._prometheus, self._alertmanager = find_all(PROMETHEUS, ALERTMANAGER)
        self._grafana = find(GRAFANA)
        self._dashboards = find_dashboards()
        self._chance = random.Random()  # noqa: S311  # not a secret
        self._failure: OSError | None = None
        self._stop = trio.CancelScope()

    async def run(self) -> None:
        """Run the lab in a temporary directory for its duration, or until cancelled."""
        with self._stop, tempfile.TemporaryDirectory(prefix="triojam-lab-") as folder:
            async with trio.open_nursery() as nursery:
                server = await self._start(nursery, Path(folder))
                load = Plan(
                    connections=LOAD_CONNECTIONS,
                    seconds=inf,
                    rate=self._plan.rate,
                    patience=LOAD_PATIENCE,
                    mix=Mix.parse(LOAD_MIX),
                )
                nursery.start_soon(run_load, server.address, load, self._chance)
                nursery.start_soon(self._do_faults, server)
                await trio.sleep(self._plan.seconds)
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _start(self, nursery: trio.Nursery, folder: Path) -> ServerProgram:
        """Start all programs, and print their addresses."""
        server = make_server(folder, SETTINGS)
        await nursery.start(server.run)
        receiver = await nursery.start(alerts.receive, LOOPBACK, self._event)
        alertmanager = make_alertmanager(self._alertmanager, folder, receiver)
        await nursery.start(alertmanager.run)
        shipped = sorted((self._dashboards / "prometheus" / "rules").glob("*.yml"))
        rules = alerts.write_sped_up(shipped, folder / "rules", self._plan.speed)
        prometheus = make_prometheus(
            self._prometheus, folder, target=server.web, alertmanager=alertmanager.address, rules=rules
        )
        await nursery.start(prometheus.run)
        grafana = None
        if self._grafana is not None:
            grafana = make_grafana(
                self._grafana, folder, dashboards=self._dashboards, prometheus=prometheus.url
            )
            await nursery.start(grafana.run)
        lines = _table(server, prometheus, alertmanager, grafana)
        if self._plan.speed != 1:
            lines.append(f"The rules are faster: one minute in them is {60 / self._plan.speed:.2g} s here.")
        self._tell("\n".join([*lines, "Ctrl-C stops all of it."]))
        return server

    async def _do_faults(self, server: ServerProgram) -> None:
        target = Target(
            address=server.address,
            limit=MAX_CONNECTIONS,
            line_timeout=LINE_TIMEOUT,
            seconds=self._plan.fault_for,
            set_clock=server.set_clock,
            send_signal=server.send_signal,
            chance=self._chance,
        )
        for name in self._plan.faults:
            await trio.sleep(self._plan.fault_after)
            self._event(f"fault    {name} for {self._plan.fault_for:g} s: {describe(name)}")
            with trio.move_on_after(self._plan.fault_for):
                await FAULTS[name](target)
            self._event(f"fault    {name} is over")

    def _event(self, line: str) -> None:
        self._tell(f"{time.strftime('%H:%M:%S')}  {line}")

    def _tell(self, text: str) -> None:
        """Print a text. A closed pipe ends the lab, even if the caller catches all exceptions."""
        try:
            self._say(text)
        except OSError as exc:
            self._failure = exc
            self._stop.cancel()


def describe(fault: str) -> str:
    """Return the description of a fault: the first line of its docstring."""
    return (FAULTS[fault].__doc__ or "").split("\n")[0].rstrip(".")


def _table(
    server: ServerProgram, prometheus: Program, alertmanager: Program, grafana: Program | None
) -> list[str]:
    """Return a line for each address."""
    host, port = server.address
    live_page = f"http://{server.web[0]}:{server.web[1]}/"
    rows = [
        ("time", f"{host}:{port}"),
        ("live page", live_page),
        ("metrics", f"{live_page}metrics"),
        ("Prometheus", prometheus.url),
        ("alerts", f"{prometheus.url}alerts"),
        ("Alertmanager", alertmanager.url),
        ("Grafana", grafana.url if grafana else f"not on PATH; the live page works without it: {live_page}"),
    ]
    return [f"{name:12}  {address}" for name, address in rows]
