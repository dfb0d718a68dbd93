"""The parts of the lab: faults on its server, the receiver of alerts, the faster rules, its programs."""

import http.client
import json
import random
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest
import trio

from tests.helpers.pages import table
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Scrape, scrape
from tests.helpers.servers import PATIENCE
from tests.helpers.waiting import eventually
from triojam.cli.lab import FaultName
from triojam.errors import LabError
from triojam.lab.alerts import (
    CLOCK_ALERT,
    Alert,
    Inbox,
    UnsynchronizedClock,
    parse,
    receive,
    speed_up,
    write_sped_up,
)
from triojam.lab.configuration import find_shipped, make_service
from triojam.lab.faults import FAULTS, Target
from triojam.lab.network import LOOPBACK, Network
from triojam.lab.programs import Program, ServerProgram, make_home
from triojam.lab.run import SETTINGS
from triojam.web.kernel_clock import KernelClock

ROOT = Path(__file__).parents[2]
LINE_TIMEOUT = 0.3
LIMIT = 30


@asynccontextmanager
async def lab_server(folder: Path) -> AsyncIterator[ServerProgram]:
    """Run only the lab's server, with even lower limits."""
    settings = SETTINGS | {"line_timeout": LINE_TIMEOUT, "max_connections": LIMIT, "grace": 0.1}
    async with make_home(folder, Network()) as home, trio.open_nursery() as nursery:
        (server,) = make_service(home, settings).servers
        with trio.fail_after(PATIENCE):
            await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


def lag(seen: Scrape, *, longer: str) -> float:
    """Return how often the event loop's lag was longer than a bound of the histogram."""
    bucket = "triojam_event_loop_lag_seconds_bucket"
    return seen.total(bucket, le="+Inf") - seen.total(bucket, le=longer)


DEAD = Scrape([])  # of a server that does not answer

# The effect of each fault on the metrics.
SIGNS: dict[str, Callable[[Scrape], bool]] = {
    "slow-clients": lambda seen: (
        seen.total("triojam_rejected_total", reason="timeout") > 0
        and seen.total("triojam_disconnects_total", reason="line_timeout") > 0
        and seen.total("triojam_request_receive_seconds_count") > 0
    ),
    "garbage": lambda seen: (
        seen.total("triojam_rejected_total", reason="bad_command") > 0
        and seen.total("triojam_disconnects_total", reason="error_budget") > 0
    ),
    "resets": lambda seen: seen.total("triojam_disconnects_total", reason="reset") > 0,
    "flood": lambda seen: (
        seen.total("triojam_connections_rejected_total", reason="busy") > 0
        and seen.total("triojam_connections_open") == LIMIT
        and seen.total("triojam_responses_total") > 10 * LIMIT
    ),
    "clock": lambda seen: seen.total("triojam_clock_steps_total") > 0,
    "pause": lambda seen: lag(seen, longer="0.25") > 0,
    "kill": lambda seen: seen == DEAD,
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_changes_the_metrics(name: str, tmp_path: Path) -> None:
    """Each fault has its effect on the metrics, and leaves no connection behind."""
    async with lab_server(tmp_path) as server:
        target = Target(
            server=server,
            address=server.address,
            limit=LIMIT,
            line_timeout=LINE_TIMEOUT,
            seconds=1.0,
            chance=random.Random(1),
        )

        async def look() -> Scrape:
            try:
                return await scrape(server.web)
            except (OSError, http.client.HTTPException):
                return DEAD

        async def shows() -> bool:
            return SIGNS[name](await look())

        async def over() -> bool:
            seen = await look()
            return seen != DEAD and seen.total("triojam_connections_open") == 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(FAULTS[name].cause, target)
            await eventually(shows)
            nursery.cancel_scope.cancel()
        await eventually(over)
        assert (await scrape(server.web)).unaccounted == 0


async def test_the_clock_can_be_set(tmp_path: Path) -> None:
    """The server's clock is ahead by the given seconds, and then right again."""
    async with lab_server(tmp_path) as server:
        for ahead in (3600, 0):

            async def is_ahead(ahead: float = ahead) -> bool:
                seen = await scrape(server.web)
                now = seen.total("triojam_clock_seconds")
                return abs(now - seen.total("process_start_time_seconds") - ahead) < 30

            await server.set_clock(ahead)
            await eventually(is_ahead)


def test_every_fault_has_a_name_and_a_description() -> None:
    """The command accepts the names of all faults."""
    assert set(get_args(FaultName)) == set(FAULTS) == set(SIGNS)
    assert all(each.description for each in FAULTS.values())
    assert all(bool(each.alerts) != bool(each.instead) for each in FAULTS.values())


def test_the_table_of_faults_has_their_alerts() -> None:
    """The page names the alerts that the lab names, or gives a reason why none fires."""
    rows = {name.strip("`"): alerts for name, _, alerts, _ in table("dashboards/README.md", "The lab")}
    for name, each in FAULTS.items():
        assert rows[name] == ", ".join(each.alerts) if each.alerts else rows[name].startswith("none: ")


def alert(status: str = "firing", **changed: Any) -> dict[str, Any]:
    """Return an alert as Alertmanager sends it."""
    return {
        "status": status,
        "labels": {"alertname": "Down", "severity": "page"},
        "annotations": {"summary": "no\nanswer"},
        "startsAt": "2026-01-01T00:00:00Z",
        "fingerprint": "1234",
        **changed,
    }


async def test_the_receiver_tells_each_change_once(nursery: trio.Nursery) -> None:
    """A repeated alert is told once; it is told again when it resolves or starts again."""
    said: list[str] = []

    async def tell(each: Alert) -> None:
        await trio.lowlevel.checkpoint()
        said.append(str(each))

    url = urlsplit(await nursery.start(receive, Inbox(tell)))

    def post(body: bytes) -> int:
        with closing(http.client.HTTPConnection(url.netloc, timeout=PATIENCE)) as connection:
            connection.request("POST", url.path, body)
            return connection.getresponse().status

    async def send(body: object) -> int:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await trio.to_thread.run_sync(post, data)

    for each in (alert(), alert(), alert("resolved"), alert("resolved"), alert(startsAt="later")):
        assert await send({"alerts": [each]}) == 200
    assert said == [
        "FIRING   Down  page  no answer",
        "resolved Down  page  no answer",
        "FIRING   Down  page  no answer",
    ]
    bad: object
    for bad in (b"{", b"\xff", [], {}, {"alerts": [1]}, {"alerts": [{}]}):
        assert await send(bad) == 400
    assert len(said) == 3


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ([False, False, False], [False, False]),  # as at the start, e.g. while the server is paused
        ([False, True, True], [True, True]),  # something keeps the clock now
        ([False, True, False], [True, True]),  # and then nothing again
        ([True, False, True], [True, True]),
        ([None, False, True], [True, True]),  # the kernel could not be asked
    ],
)
def test_the_clock_alert_is_told_only_after_a_change(states: list[bool | None], told: list[bool]) -> None:
    """The lab does not tell the alert about a clock that has been unsynchronized since the start."""
    left = iter(states)

    def read() -> KernelClock | None:
        state = next(left)
        return (
            None
            if state is None
            else KernelClock(synchronized=state, max_error=0.0, offset=0.0, leap_state=0)
        )

    clock = UnsynchronizedClock(read)
    changes = [parse(alert(labels={"alertname": CLOCK_ALERT})) for _ in told]
    assert [not clock.explains(each) for each in changes] == told


def test_other_alerts_are_told() -> None:
    """An unsynchronized clock explains no other alert."""
    clock = KernelClock(synchronized=False, max_error=0.0, offset=0.0, leap_state=0)
    assert not UnsynchronizedClock(lambda: clock).explains(parse(alert()))


def test_an_alert_needs_only_a_name() -> None:
    """An alert may lack its severity, summary, query and runbook."""
    read = parse(alert(labels={"alertname": "Up"}, annotations={}))
    assert str(read) == "FIRING   Up"
    assert (read.expression, read.runbook) == ("", "")


@pytest.mark.parametrize("key", ["runbook", "runbook_url"])
def test_an_alert_has_its_query_and_its_runbook(key: str) -> None:
    """The query is taken out of Prometheus's link, which leads nowhere in some builds."""
    link = "http://127.0.0.1:9090/graph?g0.expr=up+%3D%3D+0&g0.tab=1"
    read = parse(alert(generatorURL=link, annotations={key: "http://127.0.0.1:1/runbooks#down"}))
    assert (read.expression, read.runbook) == ("up == 0", "http://127.0.0.1:1/runbooks#down")


def test_an_alert_cannot_write_to_the_terminal() -> None:
    """Control characters in an alert are not printed."""
    assert str(parse(alert(annotations={"summary": "a\x1b[2Jb"}))) == "FIRING   Down  page  a [2Jb"


@pytest.mark.parametrize(
    "link", ["runbook: RUNBOOKS.md#down", "runbook_url: https://triojam.example/runbooks#down"]
)
def test_links_to_runbooks_lead_to_the_lab(link: str, tmp_path: Path) -> None:
    """The rules of the lab have the address of the lab's own page of runbooks."""
    (tmp_path / "a.yml").write_text(f"  {link}\n# see RUNBOOKS.md\n")
    (written,) = write_sped_up(tmp_path, tmp_path / "faster", 15, "http://127.0.0.1:1/runbooks")
    key = link.partition(":")[0]
    assert written.read_text() == f"  {key}: http://127.0.0.1:1/runbooks#down\n# see RUNBOOKS.md\n"


def test_missing_rules_are_an_error(tmp_path: Path) -> None:
    """A lab without rules would never fire an alert."""
    with pytest.raises(LabError, match="no rules in"):
        write_sped_up(tmp_path, tmp_path / "faster", 15, "")


@pytest.mark.parametrize(
    ("text", "faster"),
    [
        ("for: 5m", "for: 20000ms"),
        ("  keep_firing_for: 2m30s # a while", "  keep_firing_for: 10000ms # a while"),
        ("interval: 15s", "interval: 1000ms"),
        ("rate(a[1h])", "rate(a[240000ms])"),
        ("rate(a[30s])", "rate(a[4000ms])"),  # room for two scrapes
        ("rate(a[2s])", "rate(a[2000ms])"),  # never longer than before
        ("max_over_time(a[1h:1m])", "max_over_time(a[240000ms:1m])"),
        ("a offset 1d", "a offset 5760000ms"),
        ('summary: "for 5m", rate5m', 'summary: "for 5m", rate5m'),
    ],
)
def test_rules_become_faster(text: str, faster: str) -> None:
    """Windows and waiting times become shorter, and nothing else changes."""
    assert speed_up(text, 15) == faster
    assert speed_up(text, 1) == text


def test_faster_rules_are_valid(tmp_path: Path) -> None:
    """Prometheus accepts the shipped rules as the lab changes them."""
    promtool = require_program("promtool", "prometheus")
    shipped = find_shipped("dashboards") / "prometheus" / "rules"
    for number, speed in enumerate((1.0, 15.0, 1000.0)):
        files = write_sped_up(shipped, tmp_path / str(number), speed, "http://127.0.0.1:1")
        checked = subprocess.run(
            [promtool, "check", "rules", *files], check=False, capture_output=True, text=True, timeout=60
        )
        assert checked.returncode == 0, checked.stderr


def test_the_wheel_has_the_dashboards() -> None:
    """The wheel has the rules and dashboards where the lab looks for them."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert set(included) >= {"dashboards/grafana", "dashboards/prometheus"}
    assert included == {each: f"triojam/{each}" for each in included}
    assert all((ROOT / each).exists() for each in included)
    name = "prometheus/rules/alerts.yml"
    assert (find_shipped("dashboards") / name).read_bytes() == (ROOT / "dashboards" / name).read_bytes()


def test_missing_dashboards_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If neither the package nor a checkout has them, the error is one line."""
    monkeypatch.setattr(
        "triojam.lab.configuration.resources.files", lambda _package: tmp_path / "src" / "triojam"
    )
    with pytest.raises(LabError, match="folder dashboards is missing"):
        find_shipped("dashboards")


async def test_a_program_that_does_not_become_ready_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time the program is killed, and the error names it."""
    monkeypatch.setattr("triojam.lab.programs.START_SECONDS", 0.2)
    async with make_home(tmp_path, Network()) as home:
        address = (LOOPBACK, home.network.reserve_port())
        sleeper = Program("Sleeper", ["sleep", "600"], home, address)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                with pytest.raises(LabError, match=r"Sleeper is not ready after 0\.2 s$"):
                    await nursery.start(sleeper.run)


def test_reserved_ports_differ() -> None:
    """No port is reserved twice."""
    ports = [Network().reserve_port() for _ in range(50)]
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("word", ["ask", "watch", "load", "--help"])
def test_other_commands_do_not_import_the_lab(word: str) -> None:
    """The other commands start without importing the lab."""
    script = f"""
import sys
from triojam.cli.main import main
main([{word!r}, "--help"])
print("\\nloaded", [each for each in sys.modules if each.startswith("triojam.lab")])
"""
    run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=60)
    loaded = run([sys.executable, "-c", script]).stdout.splitlines()[-1]
    assert loaded == "loaded []"
