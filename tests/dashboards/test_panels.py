"""The panels of the overview: a colour has one meaning, every reason is explained, links lead somewhere."""

import re
from collections.abc import Iterator

import pytest

from tests.dashboards.content import BOARDS, FILES, OVERVIEW, everything_in, load, panels
from tests.dashboards.test_rules import ALERTS
from tests.docs.test_docs import live_metrics
from tests.helpers.pages import table

# The colours of the live page, and their meanings.
COLORS = {
    "#2E9E5B": "good; responses",
    "#D98E04": "a warning; rejected requests",
    "#D64045": "wrong; send errors, refused connections",
    "#2F7ED8": "requests",
    "#8A5CC2": "connections",
    "#7A8691": "information",
}


def test_every_panel_is_described() -> None:
    """Every panel has a title and a description, every graph and number a unit, every number thresholds."""
    for panel in [panel for path in FILES for panel in panels(load(path))]:
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        if panel["type"] in {"stat", "timeseries"}:
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "stat":
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]


def test_a_line_for_each_server_is_bounded() -> None:
    """A graph with a line for each server shows some of a large fleet."""
    found = 0
    for panel in [panel for path in BOARDS for panel in panels(load(path))]:
        for target in panel["targets"]:
            if re.search(r"\{\{(instance|server)\}\}", target["legendFormat"]):
                found += 1
                assert re.match(r"(topk|bottomk)\(\d\d, ", target["expr"]), panel["title"]
            elif panel["type"] in {"timeseries", "heatmap"}:
                assert re.match(r"(sum|min|max|histogram_quantile)\b", target["expr"]), panel["title"]
    assert found > 5


def test_a_color_has_one_meaning() -> None:
    """Every colour is one of the live page, and no panel takes the colours of a palette."""
    boards = [load(path) for path in BOARDS]
    keys = ("fixedColor", "fill", "iconColor", "color")
    given = {value for key in keys for value in everything_in(boards, key) if isinstance(value, str)}
    assert given - {"dash"} == set(COLORS)  # the fill of a line is a colour or a pattern
    for panel in [panel for board in boards for panel in panels(board)]:
        if panel["type"] in {"stat", "timeseries", "state-timeline"}:
            assert panel["fieldConfig"]["defaults"]["color"]["mode"] in {"fixed", "shades", "thresholds"}


def test_the_readme_has_the_meaning_of_each_color() -> None:
    """The table of colours in the README is the one of these tests."""
    rows = table("dashboards/README.md", "What the dashboard shows", 1)
    assert {color.strip("`"): meaning for color, meaning in rows} == COLORS


@pytest.mark.parametrize(
    ("line", "color"),
    {
        "requests": "#2F7ED8",
        "responses": "#2E9E5B",
        "rejected": "#D98E04",
        "send errors": "#D64045",
        "refused connections": "#D64045",
        "open": "#8A5CC2",
        "accepted": "#8A5CC2",
        "triojam's connections": "#8A5CC2",
        "serving": "#2E9E5B",
        "errors": "#D64045",
    }.items(),
)
def test_a_line_has_the_color_of_its_meaning(line: str, color: str) -> None:
    """A line of this name has this colour on every graph."""
    found = [
        each["value"]["fixedColor"]
        for override in everything_in([load(path) for path in BOARDS], "overrides")
        for rule in override
        if rule["matcher"]["options"] == line
        for each in rule["properties"]
        if each["id"] == "color"
    ]
    assert found
    assert set(found) == {color}


def test_a_number_without_a_value_is_not_green() -> None:
    """Every number has words for no value, and none of them is green."""
    for panel in [panel for path in BOARDS for panel in panels(load(path))]:
        if panel["type"] == "stat":
            *_, special = panel["fieldConfig"]["defaults"]["mappings"]
            assert special["options"]["match"] == "null+nan", panel["title"]
            assert COLORS[special["options"]["result"]["color"]] != "good; responses", panel["title"]


def test_a_number_with_a_graph_is_high_enough() -> None:
    """A number with a graph behind it is so high that Grafana draws the graph, and it has a value of now."""
    found = [
        panel
        for path in BOARDS
        for panel in panels(load(path))
        if panel["type"] == "stat" and panel["options"]["graphMode"] == "area"
    ]
    assert found
    for panel in found:
        assert panel["gridPos"]["h"] >= 5, panel["title"]
        assert panel["timeFrom"] == "30m"
        assert panel["options"]["reduceOptions"]["calcs"] == ["last"]
        (target,) = panel["targets"]
        assert target["expr"].endswith(" or vector(NaN)")


def labels() -> Iterator[tuple[str, str]]:
    """Yield each metric of a server that has a label of reasons, and this label."""
    for metric in live_metrics():
        for label in ("reason", "cause", "errno", "result"):
            if any(label in sample.labels for sample in metric.samples):
                yield metric.samples[0].name, label


@pytest.mark.parametrize(("metric", "label"), list(labels()))
def test_every_reason_is_explained(metric: str, label: str) -> None:
    """The description of a panel that shows a metric by reason explains every reason."""
    samples = [sample for family in live_metrics() for sample in family.samples if sample.name == metric]
    values = {sample.labels[label] for sample in samples}
    assert len(values) > 1
    shown = [
        panel
        for panel in panels(load(OVERVIEW))
        if any(f"by ({label})" in each["expr"] and metric in each["expr"] for each in panel["targets"])
    ]
    assert shown
    texts = " ".join(panel["description"] for panel in shown)
    explained = set(re.findall(r"\w+", " ".join(re.findall(r"((?:\w+, )*\w+): ", texts))))
    assert values - explained == set()


def test_an_alert_leads_to_its_runbook() -> None:
    """The number behind each alert is the panel of its runbook, and the link has that number."""
    (runbooks,) = [load(path) for path in FILES if load(path)["uid"] == "triojam-runbooks"]
    (table,) = [panel for panel in panels(load(OVERVIEW)) if panel["title"] == "Which alerts fire?"]
    rules = {rule["matcher"]["options"]: rule["properties"] for rule in table["fieldConfig"]["overrides"]}
    (link,) = rules["alertname"][0]["value"]
    assert link["url"] == "/d/triojam-runbooks?viewPanel=${__data.fields.runbook.text}"
    (numbers,) = rules["runbook"][0]["value"]
    leads = {alert: result["text"] for alert, result in numbers["options"].items()}
    assert leads == {panel["title"]: str(panel["id"]) for panel in panels(runbooks)}
    assert leads.keys() == ALERTS.keys()
