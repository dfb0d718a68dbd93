"""The dashboards against Grafana's own code: its types, and the texts and colours that it makes of values."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.content import FILES, FLEET, OVERVIEW, load, panels
from tests.dashboards.grafana.npm import SLOW, beside, install, run

HERE = Path(__file__).parent / "grafana" / "check"
GREEN, AMBER, RED, BLUE, GREY = "#2E9E5B", "#D98E04", "#D64045", "#2F7ED8", "#7A8691"

pytestmark = pytest.mark.xdist_group("grafana")  # one worker installs the packages

# Fields that the schema leaves open: they belong to the data source, not to Grafana. tsc names one of each
# object.
OPEN = {
    ("triojam annotation Alerts", "expr"): "a query of Prometheus, with the texts of the marks",
    ("triojam annotation Restarts", "expr"): "the same",
    ("triojam variable datasource", "auto"): "only for variables of intervals; the library always writes it",
    ("triojam variable job", "auto"): "the same",
    ("triojam variable instance", "auto"): "the same",
    ("triojam fleet annotation Alerts", "expr"): "the same",
    ("triojam fleet annotation Restarts", "expr"): "the same",
    ("triojam fleet variable datasource", "auto"): "the same",
    ("triojam fleet variable job", "auto"): "the same",
    ("triojam fleet variable instance", "auto"): "the same",
    ("triojam Which alerts fire? (table) custom of runbook", "hideFrom"): "Grafana 12 calls `hidden` so",
}

NaN = "NaN"  # JSON has none
# What a number looks like after these values: its text and its colour. Without values there is no series.
LOOKS: Sequence[tuple[str, Sequence[float | str], str, str]] = [
    ("Servers down", [0], "all up", GREEN),
    ("Servers down", [1], "1 DOWN", RED),
    ("Servers down", [], "NO SERVER", RED),
    ("Servers not ready", [0], "all ready", GREEN),
    ("Servers not ready", [12], "12 NOT READY", RED),
    ("Servers not ready", [], "NO SERVER", RED),
    ("Alerts firing", [0], "none", GREEN),
    ("Alerts firing", [1], "1", RED),
    ("Alerts firing", [], "NO RULES", AMBER),
    ("Success ratio", [1], "100.000%", GREEN),
    ("Success ratio", [0.99954], "99.954%", GREEN),
    ("Success ratio", [0.9985], "99.850%", AMBER),
    ("Success ratio", [0.9], "90.000%", RED),
    ("Success ratio", [0], "0.000%", RED),
    ("Success ratio", [1, NaN], "no requests", GREY),
    ("Success ratio", [], "no requests", GREY),
    ("Refused as busy", [0], "none", GREEN),
    ("Refused as busy", [0.04], "0.0400 /s", RED),
    ("Refused as busy", [0, NaN], "no data", GREY),
    ("Largest clock offset", [0.004], "4 ms", GREEN),
    ("Largest clock offset", [0.1], "100 ms", AMBER),
    ("Largest clock offset", [1], "1 s", RED),
    ("Largest clock offset", [0, NaN], "no data", GREY),
    ("Requests", [0], "0 req/s", BLUE),
    ("Requests", [12345], "12.3K req/s", BLUE),
    ("Requests", [1, NaN], "no data", GREY),
    ("99 % answered in", [0.00004], "40 µs", GREEN),
    ("99 % answered in", [0.2], "200 ms", AMBER),
    ("99 % answered in", [1], "1 s", RED),
    ("99 % answered in", [1, NaN], "no requests", GREY),
    ("Fullest server", [0], "0.0%", GREEN),
    ("Fullest server", [0.9], "90.0%", AMBER),
    ("Fullest server", [1], "100.0%", RED),
    ("Fullest server", [1, NaN], "no data", GREY),
    ("Unaccounted", [0], "0", GREEN),
    ("Unaccounted", [1], "1", RED),
    ("Unaccounted", [-1], "-1", RED),
    ("Unaccounted", [], "no data", GREY),
    ("Shortest uptime", [5], "5 seconds", GREY),
    ("Shortest uptime", [], "no data", GREY),
    ("Version", [2], "2", GREY),  # the panel shows the name of the series, the version
    ("Version", [], "no data", GREY),
    ("Certificate ends in", [30], "30.0 days", GREEN),
    ("Certificate ends in", [13.9], "13.9 days", AMBER),
    ("Certificate ends in", [2.9], "2.9 days", RED),
    ("Certificate ends in", [-0.4], "-0.4 days", RED),
    ("Certificate ends in", [], "no TLS", GREY),
    ("Clock", [1], "synchronized", GREEN),
    ("Clock", [0], "NOT SYNCHRONIZED", RED),
    ("Clock", [], "unknown", GREY),
    ("Leap second", [0], "none", GREEN),
    ("Leap second", [1], "will be inserted", AMBER),
    ("Leap second", [4], "over", GREEN),
    ("Leap second", [], "unknown", GREY),
    ("Largest possible error", [0.001], "1 ms", GREEN),
    ("Largest possible error", [16], "16 s", RED),
    ("Largest possible error", [], "unknown", GREY),
    ("Clock steps in an hour", [0], "0", GREEN),
    ("Clock steps in an hour", [1], "1", RED),
    ("Clock steps in an hour", [], "no data", GREY),
]

LOOKS_OF_FLEET: Sequence[tuple[str, Sequence[float | str], str, str]] = [
    ("Servers that serve", [1], "100%", GREEN),
    ("Servers that serve", [2 / 3], "66.7%", AMBER),
    ("Servers that serve", [0.5], "50%", RED),
    ("Servers that serve", [], "NO RULES", AMBER),
    ("Servers", [100], "100", GREY),
    ("Servers", [], "NO RULES", AMBER),
    ("Success in an hour", [0.99954], "99.954%", GREEN),
    ("Success in an hour", [0.9985], "99.850%", AMBER),
    ("Success in an hour", [], "no requests", GREY),
    ("Burn rate in an hour", [0], "0.0", GREEN),
    ("Burn rate in an hour", [1.5], "1.5", AMBER),
    ("Burn rate in an hour", [14.4], "14.4", RED),
    ("Burn rate in an hour", [], "no requests", GREY),
    ("Clocks differ by", [0.002], "2 ms", GREEN),
    ("Clocks differ by", [0.1], "100 ms", AMBER),
    ("Clocks differ by", [90], "1.50 mins", RED),
    ("Clocks differ by", [], "NO RULES", AMBER),
    ("Requests", [12345], "12.3K req/s", BLUE),
    ("Requests", [1, NaN], "no data", GREY),
    ("Servers up", [3], "3", GREEN),
    ("Servers up", [0], "0", RED),
    ("Servers up", [], "no HAProxy", GREY),
]

Series = tuple[Mapping[str, str], float]


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder of Grafana's packages."""
    return install("check")


def literals() -> Iterator[tuple[str, object, str]]:
    """Yield each part of the dashboards: its name, its content and its type in types.ts."""
    for content in map(load, FILES):
        board = content["title"]
        for row in content.pop("panels"):
            if row["type"] == "row":
                yield f"{board} row {row['title']}", row | {"panels": []}, "Row & { panels: [] }"
        for panel in panels(load_again(board)):
            yield from parts_of(f"{board} {panel['title']} ({panel['type']})", panel)
        for variable in content.get("templating", {}).get("list", []):
            yield f"{board} variable {variable['name']}", variable, "Variable"
        for mark in content.get("annotations", {}).get("list", []):
            yield f"{board} annotation {mark['name']}", mark, "Mark"
        yield board, content | {"templating": {}, "annotations": {}}, "Board"


def load_again(title: str) -> dict[str, Any]:
    """Read the dashboard with this title."""
    (found,) = [content for content in map(load, FILES) if content["title"] == title]
    return found


def parts_of(name: str, panel: dict[str, Any]) -> Iterator[tuple[str, object, str]]:
    """Yield the parts of a panel."""
    kind = json.dumps(panel["type"])
    fields = panel.pop("fieldConfig", {"defaults": {}, "overrides": []})
    yield f"{name} options", panel.pop("options", {}), f"Options<{kind}>"
    yield f"{name} custom", fields["defaults"].pop("custom", {}), f"Custom<{kind}>"
    yield f"{name} defaults", fields["defaults"], "Field"
    for override in fields["overrides"]:
        given = {each["id"]: each["value"] for each in override["properties"]}
        custom = {key.removeprefix("custom."): value for key, value in given.items() if key[:7] == "custom."}
        of_all = {key: value for key, value in given.items() if key[:7] != "custom."}
        yield f"{name} custom of {override['matcher']['options']}", custom, f"Custom<{kind}>"
        yield f"{name} override of {override['matcher']['options']}", of_all, "Field"
    yield name, panel, "Frame"


def complaints(folder: Path, packages: Path, parts: Sequence[tuple[str, object, str]]) -> dict[Any, str]:
    """Return what tsc says against parts of the dashboards: by the name of the part and of the field."""
    beside(packages, folder, HERE / "types.ts", HERE / "tsconfig.json")
    lines = [f"({json.dumps(content)}) satisfies {kind};" for _, content, kind in parts]
    names = 'import type { Board, Custom, Field, Frame, Mark, Options, Row, Variable } from "./types";'
    (folder / "dashboards.ts").write_text("\n".join([names, *lines]), "utf-8")
    command: list[str | Path] = ["node", packages / "typescript" / "bin" / "tsc", "--project", folder]
    said = subprocess.run(
        command, cwd=folder, capture_output=True, check=False, text=True, timeout=SLOW
    ).stdout
    found = re.findall(r"^dashboards\.ts\((\d+),\d+\): (.*(?:\n .*)*)", said, re.MULTILINE)
    assert len(found) == len(re.findall("^\\w.*error", said, re.MULTILINE)), said
    by_place = {}
    for line, text in found:
        field = re.search(r"""'"(\w+)"' does not exist""", text)
        by_place[parts[int(line) - 2][0], field[1] if field else ""] = text
    return by_place


def test_grafana_has_the_types_of_every_field(tmp_path: Path, packages: Path) -> None:
    """Every panel, option, custom field, variable and row has the types of Grafana's schema."""
    found = complaints(tmp_path, packages, list(literals()))
    assert {place: text for place, text in found.items() if place not in OPEN} == {}
    assert found.keys() == OPEN.keys()


def test_the_types_find_mistakes(tmp_path: Path, packages: Path) -> None:
    """An unknown field, an unknown value and a wrong type are found."""
    wrong = [
        ("option", {"graphMode": "no such mode"}, 'Options<"stat">'),
        ("unknown option", {"grafMode": "none"}, 'Options<"stat">'),
        ("custom", {"lineWidth": "1"}, 'Custom<"timeseries">'),
        ("field", {"decimals": "3"}, "Field"),
        ("panel", {"type": "graph"}, "Frame"),
    ]
    assert {name for name, _ in complaints(tmp_path, packages, wrong)} == {name for name, *_ in wrong}


def displayed(packages: Path, folder: Path, board: Path = OVERVIEW, **asked: object) -> dict[str, Any]:
    """Return what Grafana's code makes of values on the panels of a dashboard."""
    beside(packages, folder, HERE / "display.cjs")
    given = {"dashboard": str(board), "numbers": [], "tables": []} | asked
    answer: dict[str, Any] = json.loads(
        run("node", folder / "display.cjs", folder=folder, given=json.dumps(given))
    )
    return answer


@pytest.mark.parametrize(("board", "looks"), [(OVERVIEW, LOOKS), (FLEET, LOOKS_OF_FLEET)])
def test_numbers_look_right(
    tmp_path: Path, packages: Path, board: Path, looks: Sequence[tuple[str, Sequence[float | str], str, str]]
) -> None:
    """Each number has the right text and colour, also without a value; Grafana knows every name."""
    numbers = [{"title": title, "values": values} for title, values, _, _ in looks]
    answer = displayed(packages, tmp_path, board, numbers=numbers)
    found = [
        (title, values, *shown) for (title, values, *_), shown in zip(looks, answer["numbers"], strict=True)
    ]
    assert found == list(looks)
    assert answer["unknown"] == []
    stats = {panel["title"] for panel in panels(load(board)) if panel["type"] == "stat"}
    assert {title for title, *_ in looks} == stats
    assert {title for title, values, *_ in looks if not values or NaN in values} == stats


def test_the_table_of_servers_has_the_worst_first(tmp_path: Path, packages: Path) -> None:
    """A dead server is in the first row, and the link of each row has its job and its server."""
    good, dead = {"job": "clocks", "instance": "good:1"}, {"job": "clocks", "instance": "dead:1"}
    values: dict[str, list[Series]] = {
        "A": [(good, 0), (dead, 16)],  # the trouble
        "B": [(good, 1), (dead, -1)],  # the state
        "C": [(good | {"version": "1.0", "python": "3.13"}, 1)],
        "D": [(good, 4000)],
        "F": [(good, 0.99954)],
    }
    (servers,) = [panel for panel in panels(load(FLEET)) if panel["title"] == "Each server"]
    frames = [values.get(target["refId"], []) for target in servers["targets"]]
    asked = [{"title": "Each server", "frames": frames}]
    (table,) = displayed(packages, tmp_path, FLEET, tables=asked)["tables"]
    assert table["linked"] == [dead, good]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert list(rows[0]) == [
        *("instance", "job", "State", "Uptime", "Requests", "Success", "Time to answer, 99 %", "Connections"),
        *("Limit in use", "Refused", "Clock offset", "Certificate", "version", "python"),
    ]
    assert [row["State"] for row in rows] == ["down", "ready"]
    assert [row["Success"] for row in rows] == ["-", "99.954%"]


def test_the_table_of_alerts_leads_to_runbooks(tmp_path: Path, packages: Path) -> None:
    """The link of an alert has the number of its runbook's panel, and the table does not show the number."""
    labels = {
        "__name__": "ALERTS",
        "alertname": "TriojamDown",
        "alertstate": "firing",
        "instance": "dead:1",
        "job": "clocks",
        "runbook": "TriojamDown",
        "severity": "page",
    }
    asked = [{"title": "Which alerts fire?", "frames": [[(labels, 1)]]}]
    (table,) = displayed(packages, tmp_path, tables=asked)["tables"]
    assert table["columns"] == ["alertname", "severity", "instance", "job"]
    assert table["rows"] == [["TriojamDown", "page", "dead:1", "clocks"]]
    (linked,) = table["linked"]
    (runbook,) = [
        panel for panel in panels(load_again("triojam runbooks")) if panel["title"] == "TriojamDown"
    ]
    assert linked["runbook"] == str(runbook["id"])
