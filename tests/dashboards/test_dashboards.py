"""The dashboards: as generated, whole, and with data on every panel from a real Prometheus."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.dashboards.test_prometheus import PACKAGE, scraping, use
from tests.helpers.program import serving
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Address, fetch
from tests.helpers.servers import PATIENCE

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "dashboards"
FILES = sorted((DASHBOARDS / "grafana" / "dashboards").glob("*.json"))
GRID = 24

# Families that are on no panel, and why.
LEFT_OFF = {
    "python_info": "the table of servers has Python's version from triojam_build_info",
    "process_virtual_memory_bytes": "address space costs nothing; resident memory does",
}
# What Prometheus itself makes.
MADE_BY_PROMETHEUS = {"up", "ALERTS"}
# Gauges that a server has where the kernel tells: Linux.
OF_THE_KERNEL = {
    "triojam_clock_synchronized",
    "triojam_clock_max_error_seconds",
    "triojam_clock_offset_seconds",
    "triojam_leap_state",
}
# Panels that find nothing in the test, and why.
EMPTY = {
    "Alerts": "no alert fires, because the test has no rules",
    "Restarts": "no server was started a second time",
}
# What Grafana puts in: everything chosen, and a window of a few scrapes of the test's Prometheus.
CHOICES = {"$job": ".+", "$instance": ".+", "$__rate_interval": "10s"}


@dataclass(frozen=True)
class Query:
    """An expression of a dashboard. place: the heading of its panel, or the name of its annotation."""

    place: str
    expression: str


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each dashboard in turn."""
    return load(request.param)


def load(path: Path) -> dict[str, Any]:
    """Read a dashboard."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what shows something: all but the headings of the rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@cache
def queries() -> list[Query]:
    """Return every expression of every dashboard, with Grafana's variables filled in."""
    found = []
    for content in map(load, FILES):
        for panel in panels(content):
            found += [Query(panel["title"], target["expr"]) for target in panel.get("targets", [])]
        for annotation in content.get("annotations", {}).get("list", []):
            found.append(Query(annotation["name"], annotation["expr"]))
    return [Query(each.place, filled(each.expression)) for each in found]


def filled(expression: str) -> str:
    """Put values in for Grafana's variables, of which none may be left."""
    for variable, value in CHOICES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def named(expression: str) -> set[str]:
    """Return the metrics that an expression names: what stands before braces."""
    return set(re.findall(r"\b([A-Za-z_]\w*)\{", expression))


def test_as_generated() -> None:
    """The files are what the generator makes; else run python -m dashboards.generate."""
    run = subprocess.run(
        [sys.executable, "-m", "dashboards.generate", "--check"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_runbooks_are_a_dashboard() -> None:
    """The link to the runbooks leads to a dashboard that is there as soon as they are."""
    (overview,) = [content for content in map(load, FILES) if content["uid"] == "triojam-overview"]
    (link,) = overview["links"]
    assert link["url"] == "/d/triojam-runbooks"
    uids = [load(path)["uid"] for path in FILES]
    assert ("triojam-runbooks" in uids) == (DASHBOARDS / "RUNBOOKS.md").exists()
    assert len(set(uids)) == len(uids)


def test_ids_are_unique(dashboard: dict[str, Any]) -> None:
    """No two panels share a number, no two queries of a panel a letter, no two panels a heading."""
    ids = Counter(panel["id"] for panel in dashboard["panels"])
    assert [number for number, times in ids.items() if times > 1] == []
    for panel in panels(dashboard):
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert sorted(set(letters)) == sorted(letters), panel["title"]
    headings = Counter((panel["title"], panel["type"]) for panel in dashboard["panels"])
    assert [heading for heading, times in headings.items() if times > 1] == []


def test_the_grid_is_full(dashboard: dict[str, Any]) -> None:
    """Every line of panels fills the page from edge to edge, and the lines stand right below each other."""
    lines: dict[int, list[tuple[int, int, int]]] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        lines.setdefault(place["y"], []).append((place["x"], place["w"], place["h"]))
    below = 0
    for y, line in sorted(lines.items()):
        assert y == below
        end = 0
        for x, width, _ in sorted(line):
            assert x == end
            end = x + width
        assert end == GRID, f"the line at {y}"
        (height,) = {height for _, _, height in line}
        below = y + height


def test_every_panel_says_what_it_shows(dashboard: dict[str, Any]) -> None:
    """Every panel has a heading and a description, and every graph and number a unit or words."""
    for panel in panels(dashboard):
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        if panel["type"] in {"stat", "timeseries"}:
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "stat":
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]


def test_the_data_source_is_a_variable(dashboard: dict[str, Any]) -> None:
    """Wherever a dashboard says where data are from, it is what was chosen at the top of the page."""

    def sources(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            if "datasource" in value:
                yield value["datasource"]
            for each in value.values():
                yield from sources(each)
        elif isinstance(value, list):
            for each in value:
                yield from sources(each)

    variables = [each["name"] for each in dashboard.get("templating", {}).get("list", [])]
    assert variables in ([], ["datasource", "job", "instance"])
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources(dashboard))
    for panel in panels(dashboard):
        assert "datasource" in panel, panel["title"]
        assert all("datasource" in target for target in panel.get("targets", []))


def test_every_expression_is_of_what_was_chosen() -> None:
    """Wherever a metric is named, it is that of the chosen jobs and instances."""
    for query in queries():
        assert set(re.findall(r"\btriojam_\w+", query.expression)) <= named(query.expression), query
        for labels in re.findall(r"\w\{([^}]*)\}", query.expression):
            assert 'job=~".+' in labels, query
            assert 'instance=~".+' in labels, query


async def test_metrics_and_panels() -> None:
    """Every metric of a panel is in a live scrape, and every metric of a scrape is on a panel or left off."""
    async with serving() as program:
        reply = await fetch(program.web, "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    series = {sample.name: name for name, family in families.items() for sample in family.samples}
    shown = set().union(*(named(query.expression) for query in queries()))
    assert len(shown) > 30
    assert shown - set(series) - MADE_BY_PROMETHEUS <= OF_THE_KERNEL
    on_panels = {series[name] for name in shown if name in series}
    assert set(families) - on_panels == set(LEFT_OFF)


async def test_expressions_parse(tmp_path: Path) -> None:
    """`promtool check rules` accepts every expression."""
    promtool = require_program("promtool", PACKAGE)
    rules = [{"record": f"panel:{place}", "expr": each.expression} for place, each in enumerate(queries())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}), "utf-8")
    ended = await trio.run_process(
        [promtool, "check", "rules", str(file)], capture_stdout=True, capture_stderr=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert f"{len(rules)} rules found" in ended.stdout.decode()


async def test_every_panel_has_data(tmp_path: Path) -> None:
    """Every expression finds something in a Prometheus that scrapes a used server, or has a reason not to."""
    prometheus = require_program("prometheus", PACKAGE)
    async with serving() as program, scraping(prometheus, program.web, tmp_path) as server:
        served = {sample.name for sample in (await program.scrape()).samples}
        missing = OF_THE_KERNEL - served
        expected = [query for query in queries() if query.place not in EMPTY]
        expected = [query for query in expected if not named(query.expression) & missing]
        with trio.move_on_after(PATIENCE):
            while expected:
                await use(program)
                await send_pieces(program.address)
                await trio.sleep(0.5)  # nobody tells when Prometheus has scraped
                expected = [query for query in expected if not await result(server, query.expression)]
        assert expected == []
        for query in queries():
            if query.place in EMPTY:
                assert await result(server, query.expression) == [], query


async def test_every_rule_has_data(tmp_path: Path) -> None:
    """Every recording finds something there, too; what an alert asks is understood."""
    prometheus = require_program("prometheus", PACKAGE)
    recorded, alerts = rules()
    async with serving() as program, scraping(prometheus, program.web, tmp_path) as server:
        expected = set(recorded.values())
        with trio.move_on_after(PATIENCE):
            while expected:
                await use(program)
                await trio.sleep(0.5)  # nobody tells when Prometheus has scraped
                expected = {each for each in expected if not await result(server, each)}
        assert expected == set()
        for expression in alerts:
            await result(server, expression)


def rules() -> tuple[dict[str, str], list[str]]:
    """Return the recording rules by name, and what the alerts ask, as if nothing were recorded."""
    recorded: dict[str, str] = {}
    alerts = []

    def in_place(found: re.Match[str]) -> str:
        # A window of what is recorded is a subquery of what it is recorded from.
        return f"({recorded[found[1]]})" + (f"[{found[2]}:5s]" if found[2] else "")

    def whole(expression: str) -> str:
        names = "|".join(sorted(recorded, key=len, reverse=True))
        return re.sub(rf"({names})(?:\[(\w+)\])?", in_place, expression) if recorded else expression

    for file in ("recording.yml", "alerts.yml"):
        groups = yaml.safe_load((DASHBOARDS / "prometheus" / "rules" / file).read_text("utf-8"))["groups"]
        for rule in (rule for group in groups for rule in group["rules"]):
            if "record" in rule:
                recorded[rule["record"]] = whole(rule["expr"].strip())
            else:
                alerts.append(whole(rule["expr"].strip()))
    return recorded, alerts


async def send_pieces(address: Address) -> None:
    """Send a line in two pieces."""
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(b"TI")
        await trio.sleep(0.01)
        await client.send_all(b"ME\r\n")
        await client.receive_some()


async def result(server: Address, expression: str) -> list[Any]:
    """Return the series of an expression that are numbers."""
    reply = await fetch(server, f"/api/v1/query?query={quote(expression)}")
    if reply.status == 503:  # still starting
        return []
    answer = json.loads(reply.body)
    assert answer["status"] == "success", answer
    return [series for series in answer["data"]["result"] if series["value"][1] != "NaN"]


def test_provisioning() -> None:
    """Grafana finds one data source and one folder of dashboards, both by its environment."""
    folder = DASHBOARDS / "grafana" / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "triojam.yaml").read_text("utf-8"))
    (source,) = sources["datasources"]
    assert (sources["apiVersion"], source["type"], source["url"]) == (1, "prometheus", "$PROMETHEUS_URL")
    providers = yaml.safe_load((folder / "dashboards" / "triojam.yaml").read_text("utf-8"))
    (provider,) = providers["providers"]
    assert (providers["apiVersion"], provider["type"]) == (1, "file")
    assert provider["options"] == {"path": "$GRAFANA_DASHBOARDS"}


def compose() -> dict[str, Any]:
    """Return the services of the lab in containers."""
    services: dict[str, Any] = yaml.safe_load((DASHBOARDS / "compose.yaml").read_text("utf-8"))["services"]
    return services


def test_compose() -> None:
    """The services are there, what they mount is there, and nothing is published beyond loopback."""
    services = compose()
    assert set(services) == {"triojam", "load", "prometheus", "alertmanager", "grafana"}
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", []):
            source, _, _ = volume.partition(":")
            if source.startswith("./"):
                assert (DASHBOARDS / source).exists(), f"{name}: {source}"
        for needed in service.get("depends_on", []):
            assert needed in services
    assert services["triojam"]["build"] == {"context": "..", "dockerfile": "Containerfile"}
    assert not any("45001" in port for port in services["triojam"]["ports"])
    given = services["grafana"]["environment"]
    assert {"PROMETHEUS_URL", "PROMETHEUS_SCRAPE_INTERVAL", "GRAFANA_DASHBOARDS"} <= set(given)


def test_compose_scrapes_as_shipped() -> None:
    """Prometheus in containers is the shipped one, but for where the others are."""
    configuration = yaml.safe_load((DASHBOARDS / "compose" / "prometheus.yml").read_text("utf-8"))
    shipped = yaml.safe_load((DASHBOARDS / "prometheus" / "prometheus.yml").read_text("utf-8"))
    assert configuration["global"] == shipped["global"]
    assert configuration["rule_files"] == shipped["rule_files"]
    jobs = [job["job_name"] for job in configuration["scrape_configs"]]
    assert jobs == [job["job_name"] for job in shipped["scrape_configs"]]
    (targets,) = yaml.safe_load((DASHBOARDS / "compose" / "targets" / "triojam.yml").read_text("utf-8"))
    assert targets == {"targets": ["triojam:45001"]}


def test_containerfile() -> None:
    """The image takes files that are there, runs as nobody, and asks whether the server is well."""
    text = (ROOT / "Containerfile").read_text("utf-8")
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    (user,) = re.findall(r"^USER (\d+)", text, re.MULTILINE)
    assert int(user) > 0
    assert "/healthz" in text
    assert text.endswith('ENTRYPOINT ["triojam"]\n')
