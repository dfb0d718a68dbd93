"""The lab's fleet: three servers behind a real HAProxy, in a real Prometheus; faults for one of them."""

import re
import signal
import subprocess
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest
import trio

from tests.dashboards.content import FLEET, filled, load, named, panels
from tests.dashboards.test_dashboards import OF_THE_KERNEL, OF_TLS
from tests.dashboards.test_prometheus import query
from tests.helpers.pages import table
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Address, scrape
from tests.helpers.servers import receive_all
from tests.helpers.waiting import eventually
from tests.lab.labs import LAB_PATIENCE, QUIET, fake, get, links, running
from triojam.cli.main import main
from triojam.errors import LabError
from triojam.lab.configuration import find_shipped, make_service
from triojam.lab.faults import ENOUGH, FAULTS, TOO_FEW
from triojam.lab.network import LOOPBACK, Network
from triojam.lab.programs import HAPROXY, find_all, make_home
from triojam.lab.run import MAX_CONNECTIONS, SETTINGS

SERVERS = 3
ASKED = 30  # connections during the death of a server


async def ask(address: Address) -> None:
    """Ask for the time in a new connection."""
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(b"TIME\r\nQUIT\r\n")
        assert (await receive_all(client)).startswith(b"JAM ")


@pytest.mark.xdist_group("alerts")
async def test_a_fault_of_one_server_shows_where_the_lab_says(programs: None, temporary: Path) -> None:
    """A killed server is a ticket that names it, HAProxy serves on, and it comes back; then a wrong clock."""
    require_program("haproxy", "haproxy")
    # A low rate: between two requests, HAProxy and the servers count the same.
    words = ["--fleet", str(SERVERS), "--speed", "30", "--rate", "2", "--fault-for", "300"]
    async with running(temporary, *words, stdin=subprocess.PIPE) as lab:
        await lab.started()
        assert lab.process.stdin
        for url in links(lab.printed):
            assert (await get(url)).status == 200, url
        time, prometheus = lab.address("time"), lab.address("Prometheus")
        webs = {name: lab.address(name) for name in ("time1", "time2", "time3")}

        async def counted() -> bool:
            sessions = await query(prometheus, 'sum(haproxy_server_sessions_total{proxy="triojam"})')
            connections = await query(prometheus, "sum(triojam_connections_total)")
            return sessions == connections != [] and (
                await query(prometheus, "count(triojam_responses_total > 0)") == [SERVERS]
            )

        await eventually(counted, patience=LAB_PATIENCE)
        chosen = {"job": ["triojam"], "instance": [f"{host}:{port}" for host, port in webs.values()]}
        left = [
            filled(target["expr"], **chosen)
            for panel in panels(load(FLEET))
            for target in panel["targets"]
            if not named(target["expr"]) & (OF_THE_KERNEL | OF_TLS)
        ]

        async def on_every_panel() -> bool:
            left[:] = [each for each in left if not await query(prometheus, each)]
            return not left

        await eventually(on_every_panel, patience=LAB_PATIENCE)

        await lab.process.stdin.send_all(b"kill\n")
        hit = (await lab.says(r"^ +it hits (time\d) alone$"))[1]
        told = await lab.says(r"^ +can fire (.*)$")
        assert told[1] == "TriojamDown (a ticket: 2 of 3 serve), TriojamRestarted"
        at_haproxy = await lab.says(r"^ +HAProxy: (http\S+)$")
        assert (await get(at_haproxy[1])).status == 200
        await lab.says(f"FIRING   TriojamDown  ticket  {hit}  triojam does not answer")
        with pytest.raises(OSError, match="refused"):
            await scrape(webs[hit])
        for _ in range(ASKED):
            await ask(time)
        await lab.process.stdin.send_all(b"stop\n")
        await lab.says(f"resolved TriojamDown  ticket  {hit}  ")

        async def serves_again() -> bool:
            await ask(time)
            return (await scrape(webs[hit])).total("triojam_connections_total") > 0

        await eventually(serves_again)

        await lab.process.stdin.send_all(b"clock\n")
        hit = (await lab.says(r"^ +it hits (time\d) alone$"))[1]
        await lab.says("can fire TriojamClockStepped, TriojamClockWrong, TriojamClocksDiffer$")
        fired: set[str] = set()
        while not fired >= {"TriojamClockWrong", "TriojamClocksDiffer"}:
            line = await lab.says(r"FIRING   (TriojamClock(?:Wrong|sDiffer))  (page|ticket)  (time\d)?")
            assert line[3] in (hit, None)
            fired.add(line[1])
        assert await lab.ends(signal.SIGTERM) == 143
        pages = {line.split()[2] for line in lab.printed if re.search("FIRING +[A-Za-z]+  page", line)}
        assert not pages & {"TriojamDown", TOO_FEW}


async def test_a_lab_may_end_while_a_server_is_dead(fakes: Path, temporary: Path) -> None:
    """With Grafana, the lab prints the fleet's dashboard. It also ends between a kill and the restart."""
    require_program("haproxy", "haproxy")
    fake(fakes, QUIET, "prometheus", "prometheus-alertmanager", "grafana-server")
    async with running(
        temporary, "--fleet", "2", stdin=subprocess.PIPE, PATH=f"{fakes}:/usr/bin:/bin"
    ) as lab:
        await lab.started()
        assert lab.process.stdin
        assert any(re.search(f"^the fleet +http.*/d/{load(FLEET)['uid']}$", line) for line in lab.printed)
        await lab.process.stdin.send_all(b"kill\n")
        name = (await lab.says(r"^ +it hits (time\d) alone$"))[1]

        async def refuses() -> bool:
            with suppress(OSError, HTTPException):
                await scrape(lab.address(name))
                return False
            return True

        await eventually(refuses)
        assert await lab.ends(signal.SIGTERM) == 143


@pytest.mark.parametrize("servers", [1, 2, 3, 5])
def test_the_loss_of_a_server_is_a_page_if_too_few_are_left(servers: int) -> None:
    """As in the rules: a page if less than 60 % of a fleet serve, otherwise a ticket."""
    rules = (find_shipped("dashboards") / "prometheus" / "rules" / "alerts.yml").read_text("utf-8")
    assert f"job:triojam:serving_ratio >= {ENOUGH}" in rules
    assert f"job:triojam:serving_ratio < {ENOUGH} and job:triojam:servers > 1" in rules
    assert (
        FAULTS["kill"].fires(servers)
        == {
            1: ["TriojamDown", "TriojamRestarted"],
            2: ["TriojamDown (a page: 1 of 2 serve)", "TriojamRestarted", TOO_FEW],
            3: ["TriojamDown (a ticket: 2 of 3 serve)", "TriojamRestarted"],
            5: ["TriojamDown (a ticket: 4 of 5 serve)", "TriojamRestarted"],
        }[servers]
    )


def test_the_table_of_faults_says_what_a_fault_hits() -> None:
    """The page says which faults hit one server of a fleet, and which alerts are those of a fleet."""
    rows = {name.strip("`"): hit for name, _, _, hit in table("dashboards/README.md", "The lab")}
    for name, each in FAULTS.items():
        assert rows[name].startswith("one server" if each.of_one else "all servers"), name
        assert set(each.in_fleet) <= set(re.findall(r"Triojam\w+", rows[name]))


@pytest.mark.parametrize("network", [Network(), Network("::1", "::1"), Network("0.0.0.0", "127.0.0.1")])
async def test_the_shipped_configuration_of_haproxy_is_used(tmp_path: Path, network: Network) -> None:
    """Only addresses, what needs root and the page differ from the shipped file; HAProxy accepts it."""
    program = require_program("haproxy", "haproxy")
    async with make_home(tmp_path, network) as home:
        service = make_service(home, SETTINGS, SERVERS, program)
        made = home.folder / "haproxy.cfg"
        shipped = (find_shipped("deploy/haproxy") / "haproxy.cfg").read_text("utf-8").splitlines()
        lines = made.read_text("utf-8").splitlines()
        await trio.run_process([program, "-c", "-f", made], capture_stdout=True, capture_stderr=True)
    gone = {line.split()[0] for line in shipped if line not in lines}
    assert gone == {"user", "group", "chroot", "bind", "default-server", "server", "http-request"}
    binds = [line for line in lines if line.strip().startswith("bind ")]
    assert len(set(binds)) == 2
    assert sum(line.strip().startswith("server time") for line in lines) == SERVERS
    assert all(each.address[0] == LOOPBACK for each in service.servers)
    assert f'"max_connections": {MAX_CONNECTIONS // SERVERS}' in service.servers[0].command[-1]


async def test_another_configuration_of_haproxy_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shipped file without the lines that the lab changes is one line of an error."""
    (tmp_path / "haproxy.cfg").write_text("global\n")
    monkeypatch.setattr("triojam.lab.configuration.find_shipped", lambda _folder: tmp_path)
    async with make_home(tmp_path, Network()) as home:
        with pytest.raises(LabError, match=r"haproxy\.cfg has no line"):
            make_service(home, SETTINGS, SERVERS, "haproxy")


def test_a_missing_haproxy_is_named(monkeypatch: pytest.MonkeyPatch, fakes: Path) -> None:
    """One line says that HAProxy is missing, and names its Debian package; /usr/sbin need not be on PATH."""
    monkeypatch.setenv("PATH", str(fakes.parent))
    monkeypatch.setattr("triojam.lab.programs.FOR_ADMINISTRATORS", str(fakes))
    with pytest.raises(LabError, match="haproxy not found on PATH; on Debian: apt install haproxy"):
        find_all(HAPROXY)
    fake(fakes, "", *HAPROXY)
    assert find_all(HAPROXY) == [str(fakes / "haproxy")]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--fleet", "1"], "invalid value '1' for --fleet: expected a number from 2 to 5"),
        (["--fleet", "6"], "invalid value '6' for --fleet: expected a number from 2 to 5"),
        (["--fleet", "x"], "invalid value 'x' for --fleet: expected a whole number"),
        (
            ["--fleet", "3", "--metrics-port", "45001"],
            "invalid value 45001 for --metrics-port: expected 0 with --fleet, where each server has a port",
        ),
    ],
)
def test_a_wrong_fleet_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fakes: Path,
    words: list[str],
    complaint: str,
) -> None:
    """A wrong size, or a port that only one server could have, is exit status 2."""
    fake(fakes, "", "prometheus", "prometheus-alertmanager", "haproxy")
    monkeypatch.setenv("PATH", str(fakes))
    assert main(["lab", *words]) == 2
    assert complaint in capsys.readouterr().err
