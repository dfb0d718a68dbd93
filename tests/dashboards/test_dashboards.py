"""The dashboards: generated, complete, and with data from a real Prometheus on every panel."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.dashboards.content import (
    BOARDS,
    DASHBOARDS,
    FILES,
    FLEET,
    OVERVIEW,
    Query,
    everything_in,
    filled,
    first_row,
    load,
    named,
    of_haproxy,
    panels,
    queries,
    variable,
)
from tests.dashboards.test_prometheus import query, scraping, use
from tests.dashboards.test_rules import OWN_METRIC, RECORDINGS
from tests.docs.test_docs import output_of
from tests.helpers.pages import read, table
from tests.helpers.program import serving
from tests.helpers.scrape import Address, fetch
from tests.helpers.servers import PATIENCE, certificate_file

ROOT = DASHBOARDS.parent
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
# Gauges of a server with a certificate.
OF_TLS = {"triojam_tls_certificate_not_after_seconds"}
# Panels without data in the test, and the reasons.
EMPTY = {
    "Alerts": "no alert fires in the test",
    "Which alerts fire?": "no alert fires in the test",
    "Restarts": "no server restarts in the test",
}
# The table of servers has a query for each column.
MOST_QUERIES = {OVERVIEW: 20, FLEET: 22}


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each dashboard in turn."""
    return load(request.param)


def test_the_files_are_up_to_date() -> None:
    """The files are those of the generator; otherwise run `python -m dashboards.generate`."""
    assert output_of("-m", "dashboards.generate", "--check", cwd=ROOT) == ""


def test_the_links_in_the_title_bar_have_a_target() -> None:
    """The links lead to the other dashboards; servers and fleet keep the selection and the time range."""
    uids = [load(path)["uid"] for path in FILES]
    assert len(set(uids)) == len(uids)
    for path in BOARDS:
        led = {link["url"].removeprefix("/d/"): link for link in load(path)["links"]}
        assert led.keys() | {load(path)["uid"]} == set(uids)
        for uid, link in led.items():
            keeps = uid != "triojam-runbooks"
            assert (link["includeVars"], link["keepTime"]) == (keeps, keeps)


def test_ids_are_unique(dashboard: dict[str, Any]) -> None:
    """Panels have unique numbers and titles, and the queries of a panel have unique letters."""
    rows = [panel for panel in dashboard["panels"] if panel["type"] == "row"]
    ids = Counter(panel["id"] for panel in [*rows, *panels(dashboard)])
    assert [number for number, times in ids.items() if times > 1] == []
    for panel in panels(dashboard):
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert sorted(set(letters)) == sorted(letters), panel["title"]
    headings = Counter((panel["title"], panel["type"]) for panel in dashboard["panels"])
    assert [heading for heading, times in headings.items() if times > 1] == []


def test_the_grid_has_no_gaps(dashboard: dict[str, Any]) -> None:
    """Every line of panels fills the width of the page, and there is no space between lines."""
    check_grid(dashboard["panels"], top=0)
    for row in dashboard["panels"]:
        if row["type"] == "row" and row["panels"]:
            check_grid(row["panels"], top=row["gridPos"]["y"] + 1)


def check_grid(placed: Sequence[Mapping[str, Any]], *, top: int) -> None:
    """Check the places of panels whose first line is at `top`."""
    lines: dict[int, list[tuple[int, int, int]]] = {}
    for panel in placed:
        place = panel["gridPos"]
        lines.setdefault(place["y"], []).append((place["x"], place["w"], place["h"]))
    for y, line in sorted(lines.items()):
        assert y == top
        end = 0
        for x, width, _ in sorted(line):
            assert x == end
            end = x + width
        assert end == GRID, f"the line at {y}"
        (height,) = {height for _, _, height in line}
        top = y + height


def test_only_the_first_row_is_open() -> None:
    """Few queries run while a reader looks at the first row, and not more often than twice a minute."""
    for path, most in MOST_QUERIES.items():
        board = load(path)
        rows = [panel for panel in board["panels"] if panel["type"] == "row"]
        assert [row["collapsed"] for row in rows] == [False] + [True] * (len(rows) - 1)
        assert sum(len(panel.get("targets", [])) for panel in first_row(board)) <= most
        assert board["refresh"] == "30s"


def test_the_readme_has_each_row() -> None:
    """The table of rows in the README has the rows of the overview, and the number of queries is right."""
    overview = load(OVERVIEW)
    headings = [panel["title"] for panel in overview["panels"] if panel["type"] == "row"]
    page, section = "dashboards/README.md", "What the dashboard shows"
    assert [row[0] for row in table(page, section)] == headings
    asked = sum(len(panel.get("targets", [])) for panel in first_row(overview))
    assert f"{asked} queries every 30 seconds" in read(page)


def test_all_stands_for_the_values_found() -> None:
    """The variables list the servers that have triojam_build_info, and All has no pattern of its own."""
    for name in ("job", "instance"):
        given = variable(name)
        assert "triojam_build_info" in given["query"]["query"]
        assert given["includeAll"]
        assert given["multi"]
        assert "allValue" not in given
        assert given["refresh"] == 2  # when the time range changes


def test_the_data_source_is_a_variable(dashboard: dict[str, Any]) -> None:
    """Every data source in a dashboard is the variable at the top of the page."""
    variables = [each["name"] for each in dashboard.get("templating", {}).get("list", [])]
    assert variables in ([], ["datasource", "job", "instance"])
    expected = {"type": "prometheus", "uid": "${datasource}"}
    assert all(source == expected for source in everything_in(dashboard, "datasource"))
    for panel in panels(dashboard):
        assert "datasource" in panel, panel["title"]
        assert all("datasource" in target for target in panel.get("targets", []))


def test_every_expression_has_the_selection() -> None:
    """Every metric in an expression is limited to the selection, or to triojam's servers at HAProxy."""
    for each in queries():
        assert set(OWN_METRIC.findall(each.expression)) <= named(each.expression), each
        for name, labels in re.findall(r"([\w:]+)\{([^}]*)\}", each.expression):
            if name.startswith("haproxy_"):
                assert labels == 'proxy="triojam"', each
                continue
            assert 'job=~"$job' in labels, each
            assert name.startswith("job:") or 'instance=~"$instance' in labels, each


async def test_every_metric_has_a_panel() -> None:
    """Every metric on a panel is in a scrape, and every metric of a scrape is on a panel, with exceptions."""
    async with serving(*tls()) as program:
        reply = await fetch(program.web, "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    series = {sample.name: name for name, family in families.items() for sample in family.samples}
    shown = set().union(*(named(each.expression) for each in queries()))
    assert len(shown) > 30
    shown = {name for name in shown if not name.startswith("haproxy_")}
    assert shown - set(series) - MADE_BY_PROMETHEUS - RECORDINGS.keys() <= OF_THE_KERNEL
    on_panels = {series[name] for name in shown if name in series}
    assert set(families) - on_panels == set(LEFT_OFF)


async def test_every_expression_has_data(tmp_path: Path) -> None:
    """Every panel and recording rule has data in a Prometheus that scrapes a used server, with exceptions."""
    async with serving(*tls()) as program, scraping(program.web, tmp_path) as server:
        host, port = program.web
        chosen = {"job": ["triojam"], "instance": [f"{host}:{port}"]}
        on_panels = [Query(each.place, filled(each.expression, **chosen)) for each in queries()]
        asked = on_panels + [Query(name, name) for name in RECORDINGS]
        served = {sample.name for sample in (await program.scrape()).samples}
        missing = OF_THE_KERNEL - served
        expected = [
            each
            for each in asked
            if each.place not in EMPTY
            and not named(each.expression) & missing
            # test_lab_fleet.py has a HAProxy, and asks for these.
            and not of_haproxy(each.expression)
        ]
        with trio.move_on_after(PATIENCE):
            while expected:
                await use(program)
                await send_pieces(program.address)
                await trio.sleep(0.5)  # no event tells when Prometheus has scraped
                expected = [each for each in expected if not await query(server, each.expression)]
        assert expected == []
        for each in on_panels:
            values = await query(server, each.expression)
            assert not (each.place in EMPTY and values), each


def tls() -> tuple[str, ...]:
    """Return the settings of a server that has a certificate."""
    return "--tls-port", "0", "--tls-certificate", certificate_file()


async def send_pieces(address: Address) -> None:
    """Send a line in two pieces."""
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(b"TI")
        await trio.sleep(0.01)
        await client.send_all(b"ME\r\n")
        await client.receive_some()
