"""The lab as a whole program: what it starts and prints, how it ends, and that nothing is left."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.helpers.scrape import fetch, scrape
from tests.helpers.servers import PATIENCE
from tests.helpers.waiting import eventually
from tests.lab.labs import (
    LAB_PATIENCE,
    STUBBORN,
    command_of,
    descendants,
    fake,
    get,
    is_empty,
    links,
    lives,
    running,
)
from triojam.lab.alerts import CLOCK_ALERT, UnsynchronizedClock
from triojam.lab.configuration import find_shipped
from triojam.lab.faults import FAULTS

# At this speed, half an hour in the rules is half a minute.
FAST = ("--speed", "60")
# It looks back six hours, so at this speed it resolves after six minutes.
SLOW = "TriojamFailingSlowly"
# On a busy machine these fire during any fault. At this speed, TriojamAbsent fires before the first scrape.
BUSY = {"TriojamAbsent", "TriojamDown", "TriojamEventLoopLag", "TriojamFlapping", "TriojamSlow", SLOW}

BROKEN = f"""#!{sys.executable}
import sys
print("first\\nthis cannot work", file=sys.stderr)
sys.exit(3)
"""


async def test_ctrl_c_ends_the_lab(programs: None, temporary: Path) -> None:
    """Prometheus scrapes the server and has the rules, the load runs, and after Ctrl-C nothing is left.

    The name of the folder is a pattern, and no text.
    """
    folder = temporary / os.fsdecode(b"a [x]*\xff")
    folder.mkdir()
    async with running(folder) as lab:
        await lab.started()
        prometheus, metrics = lab.address("Prometheus"), lab.address("metrics")

        async def ask_prometheus(path: str, key: str) -> list[dict[str, Any]]:
            reply = await fetch(prometheus, path)
            assert reply.status == 200
            found: list[dict[str, Any]] = json.loads(reply.body)["data"][key]
            return found

        async def scraped() -> bool:
            targets = await ask_prometheus("/api/v1/targets", "activeTargets")
            assert {each["scrapeUrl"] for each in targets} <= {f"http://{metrics[0]}:{metrics[1]}/metrics"}
            return [each["health"] for each in targets] == ["up"]

        async def bad_lines_were_sent() -> bool:
            return (await scrape(metrics)).total("triojam_rejected_total") >= 1

        await eventually(scraped)
        loaded = {Path(group["file"]).name for group in await ask_prometheus("/api/v1/rules", "groups")}
        shipped = (find_shipped("dashboards") / "prometheus" / "rules").glob("*.yml")
        assert loaded == {file.name for file in shipped}
        await eventually(scraped)
        printed = links(lab.printed)
        assert len(printed) == 6  # the live page, metrics, Prometheus, alerts, Alertmanager, runbooks
        for url in printed:
            reply = await get(url)
            assert reply.status == 200, url
            assert "does not include a web" not in reply.text, url
        await eventually(bad_lines_were_sent)
        assert await lab.ends(signal.SIGINT) == 130


async def test_the_lab_ends_after_its_duration(fake_programs: str, temporary: Path) -> None:
    """With --duration the lab ends with status 0, after it has announced each fault and its end."""
    faults = ["--fault", "resets", "--fault", "garbage", "--fault-after", "0.2", "--fault-for", "0.5"]
    async with running(temporary, "--duration", "3", *faults, PATH=fake_programs) as lab:
        for name in ("resets", "garbage"):
            await lab.says(f"fault    {name} for 0.5 s: 10 clients")
            await lab.says(f"fault    {name} is over")
        assert await lab.ends() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_the_lab_during_its_start(programs: None, temporary: Path, signum: int) -> None:
    """A signal before the table is printed leaves nothing."""
    async with running(temporary) as lab:
        with trio.fail_after(PATIENCE):
            while is_empty(temporary):  # noqa: ASYNC110  # another process sets no Event
                await trio.sleep(0.01)
        lab.process.send_signal(signum)
        assert await lab.ends() == 128 + signum


@pytest.mark.xdist_group("alerts")
async def test_faults_fire_their_alerts(programs: None, temporary: Path) -> None:
    """Each fault fires the alerts that the lab names, which resolve after it; each printed link answers."""
    # The last one first: a flood makes the event loop late, too. test_lab_fleet.py kills a server.
    faults = [name for name, each in reversed(FAULTS.items()) if each.alerts and name != "kill"]
    words = [word for name in faults for word in ("--fault", name)]
    clock = UnsynchronizedClock()
    async with running(temporary, *words, "--fault-after", "3", "--fault-for", "20", *FAST) as lab:
        await lab.started()
        assert (CLOCK_ALERT in "".join(lab.printed)) == clock.lasts
        fired: dict[str, set[str]] = {name: set() for name in ["", *FAULTS]}
        resolved: set[str] = set()
        firing: set[str] = set()
        fault = ""
        expected = {alert for name in faults for alert in FAULTS[name].alerts}
        with trio.fail_after(20 * PATIENCE):
            while not (resolved >= expected - {SLOW} and set().union(*fired.values()) >= expected):
                line = await lab.says(r"^\d\d:\d\d:\d\d  (fault|FIRING|resolved) +(\S+)")
                if line[1] == "fault":
                    fault = line[2]
                    fired[fault] |= firing  # a busy machine may fire it earlier
                elif line[1] == "FIRING":
                    fired[fault].add(line[2])
                    firing.add(line[2])
                    where = await lab.says("^ +(?:value [-+.e0-9]+  )?(http.*)  (http.*)$")
                    assert (await get(where[1])).status == 200
                    page, _, anchor = where[2].partition("#")
                    assert anchor == line[2].lower()
                    assert f'id="{anchor}"' in (await get(page)).text
                else:
                    resolved.add(line[2])
                    firing.discard(line[2])
        assert [name for name in faults if not fired[name] | {SLOW} >= set(FAULTS[name].alerts)] == []
        if clock.lasts:
            assert CLOCK_ALERT not in resolved.union(*fired.values())
        assert await lab.ends(signal.SIGTERM) == 143


async def test_some_faults_fire_no_alert(programs: None, temporary: Path) -> None:
    """The lab says at once that a fault fires no alert, and why; no alert fires."""
    silent = [name for name, each in FAULTS.items() if not each.alerts]
    words = [word for name in silent for word in ("--fault", name)]
    async with running(temporary, *words, "--fault-after", "2", "--fault-for", "10", *FAST) as lab:
        for name in silent:
            await lab.says(f"fault    {name} for 10 s")
            told = await lab.says(".*")
            assert told[0].strip() == f"no alert fires for it: {FAULTS[name].instead}"
            where = await lab.says("^ +see (http.*)$")
            assert (await get(where[1])).status == 200
            await lab.says(f"fault    {name} is over")
        assert await lab.ends(signal.SIGTERM) == 143
        fired = {line.split()[2] for line in lab.printed if "FIRING" in line}
        assert fired <= BUSY


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (
            [],
            (
                "prometheus and prometheus-alertmanager not found on PATH; "
                "on Debian: apt install prometheus prometheus-alertmanager"
            ),
        ),
        (
            ["prometheus"],
            "prometheus-alertmanager not found on PATH; on Debian: apt install prometheus-alertmanager",
        ),
        # `alertmanager` is its name in other distributions. The last line of its output is shown.
        (["prometheus", "alertmanager"], "Alertmanager has ended by itself, status 3: this cannot work"),
    ],
)
async def test_a_missing_or_broken_program_is_named(
    fakes: Path, temporary: Path, names: list[str], complaint: str
) -> None:
    """One line says which program is missing, and its Debian package, or which one has failed."""
    fake(fakes, BROKEN, *names)
    async with running(temporary, PATH=str(fakes)) as lab:
        assert await lab.ends() == 1
        assert lab.printed == []
        assert await lab.complaint() == f"triojam: lab: {complaint}\n"


async def test_the_end_of_a_program_ends_the_lab(fakes: Path, temporary: Path) -> None:
    """If one program dies, the lab ends, and kills all others, even if they ignore SIGTERM."""
    fake(fakes, STUBBORN, "prometheus", "prometheus-alertmanager", "grafana-server")
    async with running(temporary, PATH=f"{fakes}:/usr/bin:/bin") as lab:
        await lab.started()
        environ = json.loads((await fetch(lab.address("Grafana"), "/")).body)
        prometheus = lab.address("Prometheus")
        assert environ["PROMETHEUS_URL"] == f"http://{prometheus[0]}:{prometheus[1]}/"
        grafana = find_shipped("dashboards") / "grafana"
        assert environ["GF_PATHS_PROVISIONING"] == str(grafana / "provisioning")
        assert environ["GRAFANA_DASHBOARDS"] == str(grafana / "dashboards")
        assert environ["GF_PATHS_DATA"].startswith(str(temporary))
        left = list(descendants(lab.process.pid))
        (server,) = [pid for pid in left if "triojam.lab.server" in command_of(pid)]
        assert len(left) == 10
        os.kill(server, signal.SIGKILL)
        assert await lab.ends() == 1
        assert not any(map(lives, left))
        assert await lab.complaint() == "triojam: lab: the server has ended by itself, status -9\n"


async def test_a_closed_pipe_ends_the_lab(fake_programs: str, temporary: Path) -> None:
    """When the reader of its output closes the pipe, the lab ends as after SIGPIPE."""
    words = ["--fault", "garbage", "--fault-after", "0.1", "--fault-for", "0.1"]
    async with running(temporary, *words, PATH=fake_programs) as lab:
        await lab.says("^time ")
        assert lab.process.stdout is not None
        await lab.process.stdout.aclose()
        with trio.fail_after(LAB_PATIENCE):
            assert await lab.process.wait() == 141
    assert is_empty(temporary)
