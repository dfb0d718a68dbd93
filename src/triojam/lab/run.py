"""A lab: a server, the programs that watch it, a gentle load, and faults on purpose.

All of it runs in one nursery and one temporary folder, and ends with them.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import trio

from triojam.errors import LabError, invalid_value
from triojam.lab import alerts, commands, pages
from triojam.lab.alerts import CLOCK_ALERT, Alert
from triojam.lab.commands import INDENT, Injector
from triojam.lab.configuration import (
    Service,
    find_shipped,
    make_alertmanager,
    make_grafana,
    make_prometheus,
    make_service,
)
from triojam.lab.faults import Target, run_load
from triojam.lab.network import LOOPBACK, choose_network, in_url
from triojam.lab.pages import Links
from triojam.lab.programs import (
    ALERTMANAGER,
    GRAFANA,
    HAPROXY,
    PROMETHEUS,
    Home,
    find,
    find_all,
    make_home,
    parent_folder,
)
from triojam.load.plan import Mix, Plan
from triojam.process import signals

LINE_TIMEOUT = 2.0
MAX_CONNECTIONS = 200
# Low limits: a fault reaches them in seconds, without all of the machine's capacity. The servers of a fleet
# share the connections.
SETTINGS = {"line_timeout": LINE_TIMEOUT, "max_connections": MAX_CONNECTIONS, "grace": 1.0}
FLEET_DASHBOARD = "d/triojam-fleet"
LOAD_CONNECTIONS = 10
LOAD_MIX = "TIME:92,TIME please:3,split:3,HELLO:1,time:1"
LOAD_PATIENCE = 2.0

# More wait at Alertmanager, which sends them again.
MOST_WAITING_ALERTS = 100

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LabPlan:
    """What a lab does.

    seconds: its duration. faults: their names, in order; each starts `fault_after` seconds after the start of
    the lab or the end of the last fault, and lasts `fault_for` seconds. rate: requests a second. speed: the
    factor by which the rules are faster. bind: the address that its programs listen on. ports: by flag; 0 is
    any free port. seed: of what happens at random. fleet: the number of servers; more than one are behind
    HAProxy.
    """

    fleet: int = 1
    seconds: float = inf
    faults: Sequence[str] = ()
    fault_after: float = 15.0
    fault_for: float = 40.0
    rate: float = 50.0
    speed: float = 15.0
    bind: str = LOOPBACK
    ports: Mapping[str, int] = field(default_factory=dict)
    seed: int | None = None


def run(plan: LabPlan, say: Say) -> int:
    """Run a lab, and return the exit status: 0, or 128 + n if signal n ended it.

    Raises ConfigurationError, LabError, and what `say` raises.
    """
    lab = _Lab(plan, say)
    received: list[int] = []

    def end(signum: int, scope: trio.CancelScope) -> None:
        received.append(signum)
        scope.cancel()

    signals.run(lab.run, end, signals.STOP | signals.HANGUP, ignore_afterwards=True)
    return 128 + received[0] if received else 0


def tell(word: str, say: Say) -> int:
    """Tell a running lab to do something, and return the exit status 0. Raises LabError."""
    say(commands.send(word, parent_folder()))
    return 0


class _Lab:
    def __init__(self, plan: LabPlan, say: Say) -> None:
        self._plan = plan
        self._say = say
        needed = [PROMETHEUS, ALERTMANAGER, *([HAPROXY] if plan.fleet > 1 else [])]
        self._prometheus, self._alertmanager, *self._haproxy = find_all(*needed)
        self._grafana = find(GRAFANA)
        self._dashboards = find_shipped("dashboards")
        self._runbooks = self._dashboards / "RUNBOOKS.md"
        if plan.fleet > 1 and (port := plan.ports.get("--metrics-port", 0)):
            raise invalid_value(port, "--metrics-port", "0 with --fleet, where each server has a port")
        self._network = choose_network(plan.bind, plan.ports)
        self._parent = parent_folder()
        self._chance = random.Random()  # noqa: S311  # not a secret
        self._failure: OSError | None = None
        self._stop = trio.CancelScope()

    async def run(self) -> None:
        """Run the lab in a temporary folder for its duration, or until cancelled."""
        with self._stop:
            async with make_home(self._parent, self._network) as home, trio.open_nursery() as nursery:
                nursery.start_soon(home.watch)
                try:
                    injector = await self._start(nursery, home)
                except OSError as exc:  # a full disk, or a file that cannot be read
                    raise LabError(f"lab: {exc.filename or home.folder}: {exc.strerror}") from None
                nursery.start_soon(self._do_faults, injector)
                await trio.sleep(self._plan.seconds)
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _start(self, nursery: trio.Nursery, home: Home) -> Injector:
        """Start everything, and print the addresses. Returns what causes faults on the server."""
        network = home.network
        service = make_service(home, SETTINGS, self._plan.fleet, *self._haproxy)
        for each in service.programs:
            await nursery.start(each.run)
        clock = alerts.UnsynchronizedClock()
        changes, news = trio.open_memory_channel[Alert](MOST_WAITING_ALERTS)
        inbox = alerts.Inbox(changes.send, clock.explains)
        receiver = await nursery.start(alerts.receive, inbox)
        text = self._runbooks.read_text("utf-8")
        runbooks = await nursery.start(pages.serve_runbooks, text, network)
        alertmanager = make_alertmanager(self._alertmanager, home, receiver)
        await nursery.start(alertmanager.run)
        shipped = self._dashboards / "prometheus" / "rules"
        prometheus = make_prometheus(
            self._prometheus,
            home,
            targets=service.targets,
            alertmanager=alertmanager.instance,
            rules=alerts.write_sped_up(shipped, home.folder / "rules", self._plan.speed, runbooks),
        )
        await nursery.start(prometheus.run)
        grafana = None
        if self._grafana is not None:
            grafana = make_grafana(
                self._grafana, home, dashboards=self._dashboards, prometheus=prometheus.url
            )
            await nursery.start(grafana.run)
        await pages.first_scrape(prometheus.url, len(service.programs))
        own_pages = service.pages(network)
        links = await pages.find_links(next(iter(own_pages.values())), prometheus.url)
        injector = self._make_injector(service, links, nursery)
        await nursery.start(commands.listen, home.folder, injector.obey)
        rows = {
            "time": f"{in_url(service.address[0])}:{service.address[1]}",
            **{name: await pages.answering(url) for name, url in own_pages.items()},
            "Prometheus": links.graphs,
            "alerts": links.alerts,
            "Alertmanager": await pages.alertmanager_page(alertmanager.url),
            "runbooks": await pages.answering(runbooks),
            "Grafana": await pages.answering(grafana.url)
            if grafana
            else "not on PATH; all else works without it",
        }
        if grafana is not None and service.haproxy is not None:
            rows["the fleet"] = await pages.answering(f"{grafana.url}{FLEET_DASHBOARD}")
        lines = [f"{name:12}  {address}" for name, address in rows.items()]
        self._tell("\n".join([*lines, *self._notes(clock)]))
        nursery.start_soon(self._tell_alerts, service, news, links, prometheus.url, injector)
        nursery.start_soon(commands.read_keyboard, injector.obey, self._tell)
        load = Plan(
            connections=LOAD_CONNECTIONS,
            seconds=inf,
            rate=self._plan.rate,
            patience=LOAD_PATIENCE,
            visits=self._plan.fleet > 1,  # HAProxy chooses a server for each connection
            mix=Mix.parse(LOAD_MIX),
        )
        nursery.start_soon(run_load, service.address, load, self._chance)
        return injector

    def _make_injector(self, service: Service, links: Links, nursery: trio.Nursery) -> Injector:
        targets = [
            Target(
                server=each,
                address=service.address,
                limit=MAX_CONNECTIONS,
                line_timeout=LINE_TIMEOUT,
                seconds=self._plan.fault_for,
                chance=self._chance,
            )
            for each in service.servers
        ]
        mysteries = random.Random(self._plan.seed)  # noqa: S311  # not a secret
        return Injector(targets, self._event, links, nursery, mysteries)

    def _notes(self, clock: alerts.UnsynchronizedClock) -> list[str]:
        """Return what else must be known at the start."""
        notes = []
        if self._network.is_open:
            notes.append(
                f"Every machine that reaches {self._network.shown} can read all of it but Alertmanager."
            )
        if clock.lasts:
            notes.append(
                f"This machine's clock is not synchronized: {CLOCK_ALERT} fires. Only a change is told."
            )
        if self._plan.speed != 1:
            notes.append(f"The rules are faster: one minute in them is {60 / self._plan.speed:.2g} s here.")
        if commands.is_keyboard():
            notes.append("Type the name of a fault to cause it, or help.")
        return [*notes, "Ctrl-C stops all of it."]

    async def _tell_alerts(
        self,
        service: Service,
        news: trio.MemoryReceiveChannel[Alert],
        links: Links,
        prometheus: str,
        injector: Injector,
    ) -> None:
        """Print each change of an alert, and where to look when it fires."""
        async for received in news:
            alert = replace(received, server=service.names.get(received.labels.get("instance", ""), ""))
            lines = [str(alert)]
            if alert.fires:
                value = await pages.value_of(prometheus, alert.labels)
                query = links.query(alert.expression)
                seen = [f"value {value}" if value else "", query if alert.expression else "", alert.runbook]
                lines.append(f"{INDENT}{'  '.join(filter(None, seen))}".rstrip())
            injector.note(alert)
            self._event("\n".join(lines))

    async def _do_faults(self, injector: Injector) -> None:
        for name in self._plan.faults:
            await trio.sleep(self._plan.fault_after)
            await injector.cause(name)

    def _event(self, text: str) -> None:
        self._tell(f"{time.strftime('%H:%M:%S')}  {text}")

    def _tell(self, text: str) -> None:
        """Print a text. A closed pipe ends the lab, even if the caller catches all exceptions."""
        try:
            self._say(text)
        except OSError as exc:
            self._failure = exc
            self._stop.cancel()
