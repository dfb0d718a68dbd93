"""Makes tables: each query is a column, and series with the same labels are a row."""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models import dashboard, units
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.panels import dressed, letter, query
from dashboards.style import Steps, Words, mappings, thresholds

MOST_ROWS = 50


class Style:
    """How the cells of a column look. links: the URLs that a click offers, by title."""

    def __init__(
        self,
        *,
        unit: str | None = None,
        decimals: int | None = None,
        steps: Steps | None = None,
        words: Words | None = None,
        links: Mapping[str, str] | None = None,
        hidden: bool = False,
    ) -> None:
        self._values = {
            "unit": unit,
            "decimals": decimals,
            "mappings": mappings(words) if words else None,
            "thresholds": thresholds(steps).build() if steps else None,
            "custom.cellOptions": {"type": "color-text"} if (words or steps) and not hidden else None,
            "links": [
                {"title": title, "url": url, "targetBlank": False} for title, url in (links or {}).items()
            ]
            or None,
            "custom.hidden": True if hidden else None,
            # The same since Grafana 12.
            "custom.hideFrom": {"legend": True, "tooltip": True, "viz": True} if hidden else None,
        }

    def properties(self) -> list[dashboard.DynamicConfigValue]:
        """Return what differs from the other columns."""
        given = {name: value for name, value in self._values.items() if value is not None}
        return [dashboard.DynamicConfigValue(id_val=name, value=value) for name, value in given.items()]


class Column:
    """A column of values: its name, its expression and its style."""

    def __init__(self, name: str, expression: str, style: Style | None = None) -> None:
        self.name = name
        self.expression = expression
        self.style = style or Style(unit=units.Short)


def rows_of(
    title: str,
    description: str,
    columns: Sequence[Column],
    labels: Mapping[str, Style],
    *,
    order: Sequence[str],
    first: str = "",
    left_out: Sequence[str] = (),
    empty: str = "no data",
    width: int = 24,
    height: int = 9,
) -> table.Panel:
    """Show a row for each set of labels.

    labels: the style of the columns that are labels. order: the columns from the left; the others follow.
    first: the column with the largest value in the first row. left_out: columns and labels that the table
    does not show. empty: the text while there is no row.
    """
    panel = dressed(table.Panel(), title, description, width, height).no_value(empty)
    for place, column in enumerate(columns):
        asked = query(place, column.expression, "").format(PromQueryFormat.TABLE).instant()
        panel.with_target(asked)
        if column.name not in left_out:
            panel.override_by_name(column.name, column.style.properties())
    for label, style in labels.items():
        if properties := style.properties():
            panel.override_by_name(label, properties)
    # A table of one query has its values in the field `Value`.
    fields = [f"Value #{letter(place)}" for place in range(len(columns))] if len(columns) > 1 else ["Value"]
    names = {field: column.name for field, column in zip(fields, columns, strict=True)}
    fields_of = {name: field for field, name in names.items()}
    shown = {field: name for field, name in names.items() if name not in left_out}
    steps: dict[str, dict[str, object]] = {"merge": {}}
    if first:
        steps["sortBy"] = {"sort": [{"field": fields_of[first], "desc": True}]}
    steps["limit"] = {"limitField": MOST_ROWS}
    steps["organize"] = {
        "excludeByName": dict.fromkeys(
            ["Time", *(each for each in names if each not in shown), *left_out], True
        ),
        "indexByName": {fields_of.get(name, name): place for place, name in enumerate(order)},
        "renameByName": shown,
    }
    for name, options in steps.items():
        panel.with_transformation(dashboard.DataTransformerConfig(id_val=name, options=options))
    return panel
