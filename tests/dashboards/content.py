"""What the dashboards' files contain: panels, queries, and how Grafana fills in the variables."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
FILES = sorted((DASHBOARDS / "grafana" / "dashboards").glob("*.json"))
OVERVIEW = DASHBOARDS / "grafana" / "dashboards" / "triojam.json"
FLEET = DASHBOARDS / "grafana" / "dashboards" / "triojam-fleet.json"
BOARDS = (OVERVIEW, FLEET)

# A window of a few scrapes, for a Prometheus that scrapes every second.
INTERVAL = "10s"
# The characters that Grafana's data source for Prometheus escapes in the value of a variable.
SPECIAL = re.compile(r"[$^*{}\[\]'+?.()|]")


@dataclass(frozen=True)
class Query:
    """An expression of a dashboard. place: the title of its panel, or the name of its annotation."""

    place: str
    expression: str


def load(path: Path) -> dict[str, Any]:
    """Read a dashboard."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of all rows, without the headings of rows."""
    found: list[dict[str, Any]] = []
    for panel in dashboard["panels"]:
        found += panel["panels"] if panel["type"] == "row" else [panel]
    return found


def first_row(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of the row that is open."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@cache
def queries() -> list[Query]:
    """Return every expression of every dashboard, as the file has it."""
    found = []
    for content in map(load, FILES):
        for panel in panels(content):
            found += [Query(panel["title"], target["expr"]) for target in panel.get("targets", [])]
        for annotation in content.get("annotations", {}).get("list", []):
            found.append(Query(annotation["name"], annotation["expr"]))
    return found


def variable(name: str) -> dict[str, Any]:
    """Return a variable of the overview."""
    (found,) = [each for each in load(OVERVIEW)["templating"]["list"] if each["name"] == name]
    return dict(found)


def choice(values: Sequence[str]) -> str:
    """Return the text that Grafana puts in place of a variable with several values."""
    escaped = [SPECIAL.sub(r"\\\\\g<0>", value.replace("\\", "\\\\\\\\")) for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def filled(expression: str, **values: Sequence[str]) -> str:
    """Replace Grafana's variables by values, as Grafana does."""
    expression = expression.replace("$__rate_interval", INTERVAL)
    for name, found in values.items():
        expression = expression.replace(f"${name}", choice(found))
    assert "$" not in expression, expression
    return expression


def named(expression: str) -> set[str]:
    """Return the metrics in an expression: the names before braces."""
    return set(re.findall(r"([A-Za-z_][\w:]*)\{", expression))


def of_haproxy(expression: str) -> bool:
    """Whether an expression needs a HAProxy."""
    return any(name.startswith("haproxy_") for name in named(expression))


def everything_in(value: Any, key: str) -> Iterator[Any]:
    """Yield the values of a key at any depth."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for each in value.values():
            yield from everything_in(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from everything_in(each, key)
