"""The parts of the lab, one by one: faults on its server, the alerts' receiver, the rules in a hurry."""

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

from tests.helpers.requirements import require_program
from tests.helpers.scrape import Scrape, scrape
from tests.helpers.servers import PATIENCE
from triojam.cli.lab import FaultName
from triojam.errors import LabError
from triojam.lab.alerts import receive, render, speed_up, write_sped_up
from triojam.lab.configuration import make_server, reserve_port
from triojam.lab.faults import FAULTS, Target
from triojam.lab.programs import LOOPBACK, Program, ServerProgram
from triojam.lab.run import SETTINGS, describe, find_dashboards

ROOT = Path(__file__).parents[2]
LINE_TIMEOUT = 0.3
LIMIT = 30


@asynccontextmanager
async def lab_server(folder: Path) -> AsyncIterator[ServerProgram]:
    """Run the lab's server by itself, with narrower limits yet."""
    settings = SETTINGS | {"line_timeout": LINE_TIMEOUT, "max_connections": LIMIT, "grace": 0.1}
    server = make_server(folder, settings)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel()


def lag(seen: Scrape, *, longer: str) -> float:
    """Return how often the loop was later than a bound of the histogram."""
    bucket = "triojam_event_loop_lag_seconds_bucket"
    return seen.total(bucket, le="+Inf") - seen.total(bucket, le=longer)


# What each fault shows in the metrics sooner or later.
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
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_shows(name: str, tmp_path: Path) -> None:
    """Each fault moves the metrics that it is about, and does not outlive its end."""
    async with lab_server(tmp_path) as server:
        victim = Target(
            address=server.address,
            limit=LIMIT,
            line_timeout=LINE_TIMEOUT,
            seconds=1.0,
            set_clock=server.set_clock,
            send_signal=server.send_signal,
            chance=random.Random(1),
        )
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(FAULTS[name], victim)
                while not SIGNS[name](await scrape(server.web)):  # noqa: ASYNC110  # another process sets no Event
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
            while (await scrape(server.web)).total("triojam_connections_open"):  # noqa: ASYNC110  # as above
                await trio.sleep(0.01)
        assert (await scrape(server.web)).unaccounted == 0


async def test_the_clock_is_right_again(tmp_path: Path) -> None:
    """A wrong clock is wrong by so much, and its end is the fault's."""
    async with lab_server(tmp_path) as server:

        async def until_ahead(seconds: float) -> None:
            with trio.fail_after(PATIENCE):
                while abs(await ahead(server) - seconds) > 30:  # noqa: ASYNC110  # as above
                    await trio.sleep(0.01)

        await server.set_clock(3600)
        await until_ahead(3600)
        await server.set_clock(0)
        await until_ahead(0)


async def ahead(server: ServerProgram) -> float:
    """Return by how much the clock of a server is ahead of Unix time, as far as a scrape knows."""
    seen = await scrape(server.web)
    started = seen.total("process_start_time_seconds")
    return seen.total("triojam_clock_seconds") - started


def test_the_faults_of_the_command() -> None:
    """The command takes the names of the faults that there are, and each is described."""
    assert set(get_args(FaultName)) == set(FAULTS) == set(SIGNS)
    assert all(describe(name).strip() for name in FAULTS)


def alert(status: str = "firing", **changed: Any) -> dict[str, Any]:
    """Return an alert as Alertmanager's webhook has it."""
    return {
        "status": status,
        "labels": {"alertname": "Down", "severity": "page"},
        "annotations": {"summary": "nobody\nanswers"},
        "startsAt": "2026-01-01T00:00:00Z",
        "fingerprint": "1234",
        **changed,
    }


def post(url: str, body: bytes) -> int:
    """Send what Alertmanager sends; the status of the answer."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)) as connection:
        connection.request("POST", parts.path, body)
        return connection.getresponse().status


async def test_the_receiver_says_each_change_once(nursery: trio.Nursery) -> None:
    """An alert that is told again is said once; one that resolves or fires anew is said."""
    said: list[str] = []
    url = await nursery.start(receive, LOOPBACK, said.append)

    async def tell(body: object) -> int:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await trio.to_thread.run_sync(post, url, data)

    for each in (alert(), alert(), alert("resolved"), alert("resolved"), alert(startsAt="later")):
        assert await tell({"alerts": [each]}) == 200
    assert said == [
        "FIRING   Down  page  nobody answers",
        "resolved Down  page  nobody answers",
        "FIRING   Down  page  nobody answers",
    ]
    bad: object
    for bad in (b"{", b"\xff", [], {}, {"alerts": [1]}, {"alerts": [{}]}):
        assert await tell(bad) == 400
    assert len(said) == 3
    nursery.cancel_scope.cancel()


def test_an_alert_needs_little() -> None:
    """An alert without severity and summary is a line, too."""
    assert render(alert(labels={"alertname": "Up"}, annotations={})) == "FIRING   Up"


@pytest.mark.parametrize(
    ("text", "hurry"),
    [
        ("for: 5m", "for: 20000ms"),
        ("  keep_firing_for: 2m30s # a while", "  keep_firing_for: 10000ms # a while"),
        ("interval: 15s", "interval: 1000ms"),
        ("rate(a[1h])", "rate(a[240000ms])"),
        ("rate(a[30s])", "rate(a[4000ms])"),  # two scrapes at least
        ("rate(a[2s])", "rate(a[2000ms])"),  # and never longer than it was
        ("max_over_time(a[1h:1m])", "max_over_time(a[240000ms:1m])"),
        ("a offset 1d", "a offset 5760000ms"),
        ('summary: "for 5m", rate5m', 'summary: "for 5m", rate5m'),
    ],
)
def test_rules_in_a_hurry(text: str, hurry: str) -> None:
    """Windows and waiting times become shorter, and nothing else does."""
    assert speed_up(text, 15) == hurry
    assert speed_up(text, 1) == text


def test_shipped_rules_in_a_hurry(tmp_path: Path) -> None:
    """Prometheus takes the rules that come with triojam as the lab changes them."""
    promtool = require_program("promtool", "prometheus")
    shipped = sorted((find_dashboards() / "prometheus" / "rules").glob("*.yml"))
    for number, speed in enumerate((1.0, 15.0, 1000.0)):
        files = write_sped_up(shipped, tmp_path / str(number), speed)
        checked = subprocess.run(
            [promtool, "check", "rules", *files], check=False, capture_output=True, text=True, timeout=60
        )
        assert checked.returncode == 0 or not files, checked.stderr


def test_the_wheel_has_the_dashboards() -> None:
    """What the lab looks for inside of the package is what the wheel has there."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert set(included) >= {"dashboards/grafana", "dashboards/prometheus"}
    assert included == {each: f"triojam/{each}" for each in included}
    assert all((ROOT / each).exists() for each in included)
    name = "prometheus/rules/alerts.yml"
    assert (find_dashboards() / name).read_bytes() == (ROOT / "dashboards" / name).read_bytes()


def test_without_dashboards_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where neither the package nor a checkout has them, that is one line."""
    monkeypatch.setattr("triojam.lab.run.resources.files", lambda _package: tmp_path / "src" / "triojam")
    with pytest.raises(LabError, match="folder dashboards is missing"):
        find_dashboards()


async def test_a_program_that_never_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after a while, killed, and named."""
    monkeypatch.setattr("triojam.lab.programs.START_SECONDS", 0.2)
    sleeper = Program("Sleeper", ["sleep", "600"], tmp_path / "log", (LOOPBACK, reserve_port()))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            with pytest.raises(LabError, match=r"Sleeper is not ready after 0\.2 s$"):
                await nursery.start(sleeper.run)


def test_reserved_ports_are_free_and_different() -> None:
    """A port that was reserved can be listened on, and is not given out twice."""
    ports = [reserve_port() for _ in range(50)]
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("word", ["ask", "watch", "load", "--help"])
def test_others_do_not_import_the_lab(word: str) -> None:
    """No other command waits for the lab to be imported."""
    script = f"""
import sys
from triojam.cli.main import main
main([{word!r}, "--help"])
print("\\nloaded", [each for each in sys.modules if each.startswith("triojam.lab")])
"""
    run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=60)
    loaded = run([sys.executable, "-c", script]).stdout.splitlines()[-1]
    assert loaded == "loaded []"
