"""A lab: a server with all that watches it, a gentle load, and faults on purpose.

All of it lives in one nursery and one temporary directory, and goes when they go.
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
from triojam.lab.alerts import write_sped_up
from triojam.lab.faults import FAULTS, Target, run_load
from triojam.lab.programs import (
    ALERTMANAGER,
    GRAFANA_NAMES,
    LOOPBACK,
    PROMETHEUS,
    Needed,
    Program,
    ServerProgram,
    find_all,
    make_alertmanager,
    make_grafana,
    make_prometheus,
    make_server,
)
from triojam.load.plan import Mix, Plan
from triojam.process import signals

LINE_TIMEOUT = 2.0
MAX_CONNECTIONS = 200
# Limits near enough that a fault reaches them in seconds, and without taking the whole machine.
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

    seconds: until it ends by itself. faults: their names, one after the other, each `fault_after` seconds
    after the start or the end of the one before, for `fault_for` seconds. rate: requests a second. speed:
    how many times as fast as in earnest the rules are.
    """

    seconds: float = inf
    faults: Sequence[str] = ()
    fault_after: float = 15.0
    fault_for: float = 40.0
    rate: float = 50.0
    speed: float = 15.0


def find_dashboards() -> Path:
    """Return the folder of rules and dashboards: in the installed package, or else in the checkout."""
    package = Path(str(resources.files("triojam")))
    for folder in (package / "dashboards", package.parents[1] / "dashboards"):
        if folder.is_dir():
            return folder
    raise LabError(
        "lab: the folder dashboards is missing; was triojam installed by other means than its wheel?"
    )


def run(plan: LabPlan, say: Say) -> int:
    """Run a lab to its end, and return the exit status: 0, or 128 + n if signal number n ended it.

    Raises LabError, and what `say` raises.
    """
    prometheus, alertmanager = find_all(PROMETHEUS, ALERTMANAGER)
    grafana = Needed(GRAFANA_NAMES, "").find()
    lab = _Lab(plan, say, prometheus, alertmanager, grafana)
    ended: list[int] = []

    def heed(signum: int, scope: trio.CancelScope) -> None:
        ended.append(signum)
        scope.cancel()

    signals.run(lab.run, heed, signals.STOP | signals.HANGUP, ignore_afterwards=True)
    return 128 + ended[0] if ended else 0


class _Lab:
    def __init__(
        self, plan: LabPlan, say: Say, prometheus: str, alertmanager: str, grafana: str | None
    ) -> None:
        self._plan = plan
        self._say = say
        self._paths = (prometheus, alertmanager, grafana)
        self._dashboards = find_dashboards()
        self._chance = random.Random()  # noqa: S311  # no secret
        self._failure: OSError | None = None
        self._stop = trio.CancelScope()

    async def run(self) -> None:
        """Have a lab in a temporary folder, until cancelled or its time is over."""
        with self._stop, tempfile.TemporaryDirectory(prefix="triojam-lab-") as folder:
            await self._live(Path(folder))
        if self._failure is not None:
            raise self._failure

    async def _live(self, folder: Path) -> None:
        prometheus_path, alertmanager_path, grafana_path = self._paths
        async with trio.open_nursery() as nursery:
            server = make_server(folder, SETTINGS)
            await nursery.start(server.run)
            receiver = await nursery.start(alerts.receive, LOOPBACK, self._event)
            alertmanager = make_alertmanager(alertmanager_path, folder, receiver)
            await nursery.start(alertmanager.run)
            rules = sorted((self._dashboards / "prometheus" / "rules").glob("*.yml"))
            prometheus = make_prometheus(
                prometheus_path,
                folder,
                target=server.web,
                alertmanager=alertmanager.address,
                rules=write_sped_up(rules, folder / "rules", self._plan.speed),
            )
            await nursery.start(prometheus.run)
            grafana = None
            if grafana_path is not None:
                grafana = make_grafana(
                    grafana_path, folder, dashboards=self._dashboards, prometheus=prometheus.url
                )
                await nursery.start(grafana.run)
            self._tell("\n".join([*_table(server, prometheus, alertmanager, grafana), *self._manner()]))
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
            fault = FAULTS[name]
            self._event(f"fault    {name} for {self._plan.fault_for:g} s: {describe(name)}")
            with trio.move_on_after(self._plan.fault_for):
                await fault(target)
            self._event(f"fault    {name} is over")

    def _event(self, line: str) -> None:
        self._tell(f"{time.strftime('%H:%M:%S')}  {line}")

    def _tell(self, text: str) -> None:
        """Say it. The lab ends if its reader has gone, also where a server catches every exception."""
        try:
            self._say(text)
        except OSError as exc:
            self._failure = exc
            self._stop.cancel()

    def _manner(self) -> list[str]:
        minute = 60 / self._plan.speed
        hurry = f"The rules are in a hurry: a minute of theirs takes {minute:.2g} s here."
        return [*([hurry] if self._plan.speed != 1 else []), "Ctrl-C stops all of it."]


def describe(fault: str) -> str:
    """Say in words what a fault is."""
    return (FAULTS[fault].__doc__ or "").split("\n")[0].rstrip(".")


def _table(
    server: ServerProgram, prometheus: Program, alertmanager: Program, grafana: Program | None
) -> list[str]:
    """Return where everything is, in lines."""
    host, port = server.address
    live_page = f"http://{server.web[0]}:{server.web[1]}/"
    rows = [
        ("time", f"{host}:{port}"),
        ("live page", live_page),
        ("metrics", f"{live_page}metrics"),
        ("Prometheus", prometheus.url),
        ("alerts", f"{prometheus.url}alerts"),
        ("Alertmanager", alertmanager.url),
        ("Grafana", grafana.url if grafana else f"not on PATH; the live page needs none: {live_page}"),
    ]
    return [f"{name:12}  {address}" for name, address in rows]
