"""The dashboards: generated, complete, and with data from a real Prometheus on every panel."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.dashboards.test_prometheus import query, scraping, use
from tests.dashboards.test_rules import DASHBOARDS, RECORDINGS
from tests.dashboards.test_rules import load as load_yaml
from tests.docs.test_docs import output_of
from tests.helpers.program import serving
from tests.helpers.scrape import Address, fetch
from tests.helpers.servers import PATIENCE

ROOT = DASHBOARDS.parent
FILES = sorted((DASHBOARDS / "grafana" / "dashboards").glob("*.json"))
GRID = 24

# Metrics without a panel, and the reasons.
LEFT_OFF = {
    "python_info": "the table of servers has Python's version from triojam_build_info",
    "process_virtual_memory_bytes": "address space has no cost; resident memory has",
}
# Series that Prometheus adds.
MADE_BY_PROMETHEUS = {"up", "ALERTS"}
# Gauges that need a kernel with adjtimex.
OF_THE_KERNEL = {
    "triojam_clock_synchronized",
    "triojam_clock_max_error_seconds",
    "triojam_clock_offset_seconds",
    "triojam_leap_state",
}
# Panels without data in the test, and the reasons.
EMPTY = {
    "Alerts": "no alert fires in the test",
    "Restarts": "no server restarts in the test",
}
# Values for Grafana's variables: everything selected, and a window of a few scrapes.
CHOICES = {"$job": ".+", "$instance": ".+", "$__rate_interval": "10s"}


@dataclass(frozen=True)
class Query:
    """An expression of a dashboard. place: the title of its panel, or the name of its annotation."""

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
    """Return the panels, without the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@cache
def queries() -> list[Query]:
    """Return every expression of every dashboard, with values for Grafana's variables."""
    found = []
    for content in map(load, FILES):
        for panel in panels(content):
            found += [Query(panel["title"], target["expr"]) for target in panel.get("targets", [])]
        for annotation in content.get("annotations", {}).get("list", []):
            found.append(Query(annotation["name"], annotation["expr"]))
    return [Query(each.place, filled(each.expression)) for each in found]


def filled(expression: str) -> str:
    """Replace Grafana's variables by values."""
    for variable, value in CHOICES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def named(expression: str) -> set[str]:
    """Return the metrics in an expression: the names before braces."""
    return set(re.findall(r"\b([A-Za-z_]\w*)\{", expression))


def test_the_files_are_up_to_date() -> None:
    """The files are those of the generator; otherwise run `python -m dashboards.generate`."""
    assert output_of("-m", "dashboards.generate", "--check", cwd=ROOT) == ""


def test_the_link_to_the_runbooks_has_a_target() -> None:
    """The link on the overview leads to the dashboard of the runbooks."""
    (overview,) = [content for content in map(load, FILES) if content["uid"] == "triojam-overview"]
    (link,) = overview["links"]
    assert link["url"] == "/d/triojam-runbooks"
    uids = [load(path)["uid"] for path in FILES]
    assert "triojam-runbooks" in uids
    assert len(set(uids)) == len(uids)


def test_ids_are_unique(dashboard: dict[str, Any]) -> None:
    """Panels have unique numbers and titles, and the queries of a panel have unique letters."""
    ids = Counter(panel["id"] for panel in dashboard["panels"])
    assert [number for number, times in ids.items() if times > 1] == []
    for panel in panels(dashboard):
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert sorted(set(letters)) == sorted(letters), panel["title"]
    headings = Counter((panel["title"], panel["type"]) for panel in dashboard["panels"])
    assert [heading for heading, times in headings.items() if times > 1] == []


def test_the_grid_has_no_gaps(dashboard: dict[str, Any]) -> None:
    """Every line of panels fills the width of the page, and there is no space between lines."""
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


def test_every_panel_is_described(dashboard: dict[str, Any]) -> None:
    """Every panel has a title and a description, every graph and number a unit, every number thresholds."""
    for panel in panels(dashboard):
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        if panel["type"] in {"stat", "timeseries"}:
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "stat":
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]


def test_the_data_source_is_a_variable(dashboard: dict[str, Any]) -> None:
    """Every data source in a dashboard is the variable at the top of the page."""

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


def test_every_expression_has_the_selection() -> None:
    """Every metric in an expression is limited to the selected jobs and instances."""
    for each in queries():
        assert set(re.findall(r"\btriojam_\w+", each.expression)) <= named(each.expression), each
        for labels in re.findall(r"\w\{([^}]*)\}", each.expression):
            assert 'job=~".+' in labels, each
            assert 'instance=~".+' in labels, each


async def test_every_metric_has_a_panel() -> None:
    """Every metric on a panel is in a scrape, and every metric of a scrape is on a panel, with exceptions."""
    async with serving() as program:
        reply = await fetch(program.web, "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    series = {sample.name: name for name, family in families.items() for sample in family.samples}
    shown = set().union(*(named(each.expression) for each in queries()))
    assert len(shown) > 30
    assert shown - set(series) - MADE_BY_PROMETHEUS <= OF_THE_KERNEL
    on_panels = {series[name] for name in shown if name in series}
    assert set(families) - on_panels == set(LEFT_OFF)


async def test_every_expression_has_data(tmp_path: Path) -> None:
    """Every panel and recording rule has data in a Prometheus that scrapes a used server, with exceptions."""
    asked = queries() + [Query(name, name) for name in RECORDINGS]
    async with serving() as program, scraping(program.web, tmp_path) as server:
        served = {sample.name for sample in (await program.scrape()).samples}
        missing = OF_THE_KERNEL - served
        expected = [
            each for each in asked if each.place not in EMPTY and not named(each.expression) & missing
        ]
        with trio.move_on_after(PATIENCE):
            while expected:
                await use(program)
                await send_pieces(program.address)
                await trio.sleep(0.5)  # no event tells when Prometheus has scraped
                expected = [each for each in expected if not await query(server, each.expression)]
        assert expected == []
        for each in queries():
            values = await query(server, each.expression)
            assert not (each.place in EMPTY and values), each


async def send_pieces(address: Address) -> None:
    """Send a line in two pieces."""
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(b"TI")
        await trio.sleep(0.01)
        await client.send_all(b"ME\r\n")
        await client.receive_some()


def test_provisioning_uses_the_environment() -> None:
    """Grafana gets one data source and one folder of dashboards from its environment."""
    folder = DASHBOARDS / "grafana" / "provisioning"
    sources = load_yaml(folder / "datasources" / "triojam.yaml")
    (source,) = sources["datasources"]
    assert (sources["apiVersion"], source["type"], source["url"]) == (1, "prometheus", "$PROMETHEUS_URL")
    providers = load_yaml(folder / "dashboards" / "triojam.yaml")
    (provider,) = providers["providers"]
    assert (providers["apiVersion"], provider["type"]) == (1, "file")
    assert provider["options"] == {"path": "$GRAFANA_DASHBOARDS"}


def test_compose_services_are_complete() -> None:
    """The services and their mounted files exist, and all published ports are on loopback."""
    services = load_yaml(DASHBOARDS / "compose.yaml")["services"]
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


def test_compose_has_the_same_prometheus() -> None:
    """Prometheus in containers has the same configuration, except for the addresses."""
    configuration = load_yaml(DASHBOARDS / "compose" / "prometheus.yml")
    shipped = load_yaml(DASHBOARDS / "prometheus" / "prometheus.yml")
    assert configuration["global"] == shipped["global"]
    assert configuration["rule_files"] == shipped["rule_files"]
    jobs = [job["job_name"] for job in configuration["scrape_configs"]]
    assert jobs == [job["job_name"] for job in shipped["scrape_configs"]]
    (targets,) = load_yaml(DASHBOARDS / "compose" / "targets" / "triojam.yml")
    assert targets == {"targets": ["triojam:45001"]}


def test_the_container_image_is_complete() -> None:
    """The copied files exist, the user is not root, and there is a health check."""
    text = (ROOT / "Containerfile").read_text("utf-8")
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    (user,) = re.findall(r"^USER (\d+)", text, re.MULTILINE)
    assert int(user) > 0
    assert "HEALTHCHECK" in text
    assert text.endswith('ENTRYPOINT ["triojam"]\n')
