"""Makes panels: the kinds that the dashboards use, all in one style.

`overview` has the content of the dashboards, and the reasons.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import (
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard, units
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

# A variable, not a name: every Grafana has another name for its data source.
DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")

RED, ORANGE, GREEN, BLUE, GREY = "red", "orange", "green", "blue", "text"

# Thresholds and their colours. The first colour holds below all thresholds.
Steps = Sequence[tuple[float | None, str]]
# The text and the colour of a value.
Words = Mapping[int, tuple[str, str]]
# Expressions by legend.
Queries = Mapping[str, str]


class AnyPanel(Protocol):
    """The common interface of all panel builders; the library does not name it."""

    def id(self, id_val: int, /) -> Self:
        """Set the number."""

    def title(self, title: str, /) -> Self:
        """Set the heading."""

    def description(self, description: str, /) -> Self:
        """Set the text behind the (i)."""

    def datasource(self, datasource: dashboard.DataSourceRef, /) -> Self:
        """Set the data source."""

    def span(self, w: int, /) -> Self:
        """Set the width, in 24ths of the page."""

    def height(self, h: int, /) -> Self:
        """Set the height, in units of 30 pixels."""

    def build(self) -> dashboard.Panel:
        """Return the panel."""


P = TypeVar("P", bound=AnyPanel)


def _dressed(panel: P, title: str, description: str, width: int, height: int) -> P:
    return panel.title(title).description(description).datasource(DATASOURCE).span(width).height(height)


def _query(number: int, expression: str, legend: str) -> prometheus.Dataquery:
    """Make a query over the time range, named by its place in the panel."""
    query = prometheus.Dataquery().ref_id(letter(number)).datasource(DATASOURCE).expr(expression)
    return query.legend_format(legend).range()


def letter(number: int) -> str:
    """Return the name of the query at this place of a panel."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]


def thresholds(steps: Steps) -> builders.ThresholdsConfig:
    """Make thresholds."""
    return builders.ThresholdsConfig().steps([dashboard.Threshold(value, color) for value, color in steps])


def mappings(words: Words) -> list[dashboard.ValueMapping]:
    """Make words for values."""
    results = {
        str(value): dashboard.ValueMappingResult(text=shown, color=color, index=index)
        for index, (value, (shown, color)) in enumerate(words.items())
    }
    return [dashboard.ValueMap(options=results)]


def number(
    title: str,
    description: str,
    expression: str,
    *,
    unit: str = units.Short,
    steps: Steps = ((None, GREEN),),
    words: Words | None = None,
    decimals: int | None = None,
    empty: str = "no data",
    width: int = 4,
) -> stat.Panel:
    """Show the current value of a number, on a background whose colour shows whether it is good.

    empty: the text while there is no value.
    """
    panel = (
        _dressed(stat.Panel(), title, description, width, 4)
        .with_target(_query(0, expression, "").instant())
        .unit(unit)
        .thresholds(thresholds(steps))
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value(empty)
    )
    if words is not None:
        panel.mappings(mappings(words))
    if decimals is not None:
        panel.decimals(decimals)
    return panel


def lines(
    title: str,
    description: str,
    queries: Queries,
    *,
    unit: str,
    steps: Steps | None = None,
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
    width: int = 12,
) -> timeseries.Panel:
    """Show numbers over time; the legend has the last and the largest value of each.

    steps: dashed lines. stacked: the sum of the lines has a meaning. least, most: the ends of the axis.
    """
    legend = (
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.TABLE)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(show_legend=True)
        .calcs(["lastNotNull", "max"])
    )
    tooltip = (
        common_builders.VizTooltipOptions()
        .mode(common.TooltipDisplayMode.MULTI)
        .sort(common.SortOrder.DESCENDING)
    )
    panel = (
        _dressed(timeseries.Panel(), title, description, width, 8)
        .unit(unit)
        .legend(legend)
        .tooltip(tooltip)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common.VisibilityMode.AUTO)
    )
    for place, (name, expression) in enumerate(queries.items()):
        panel.with_target(_query(place, expression, name))
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if steps is not None:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(thresholds(steps)).thresholds_style(style)
    return panel


def states(
    title: str, description: str, expression: str, legend: str, words: Words, *, width: int = 24
) -> statetimeline.Panel:
    """Show a state over time."""
    return (
        _dressed(statetimeline.Panel(), title, description, width, 5)
        .with_target(_query(0, expression, legend))
        .mappings(mappings(words))
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds([(None, GREY)]))
        .merge_values(merge_values=True)
        .show_value(common.VisibilityMode.AUTO)
        .row_height(0.8)
    )


def heat(title: str, description: str, expression: str, *, width: int = 12) -> heatmap.Panel:
    """Show the buckets of a histogram over time."""
    query = _query(0, expression, "{{le}}").format(PromQueryFormat.HEATMAP)
    color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges")
    return (
        _dressed(heatmap.Panel(), title, description, width, 8)
        .with_target(query)
        .calculate(calculate=False)
        .color(color.exponent(0.5).steps(64))
        .cell_gap(1)
        .y_axis(heatmap.YAxisConfig().unit(units.Seconds))
        .cell_values(heatmap.CellValues().unit(units.Short).decimals(0))
        .show_legend()
    )


class Column:
    """A column of the table: its name, its expression and its style."""

    def __init__(
        self,
        name: str,
        expression: str,
        *,
        unit: str = units.Short,
        steps: Steps | None = None,
        words: Words | None = None,
    ) -> None:
        self.name = name
        self.expression = expression
        self._unit = unit
        self._steps = steps
        self._words = words

    def properties(self) -> list[dashboard.DynamicConfigValue]:
        """Return the style of this column."""
        properties = [dashboard.DynamicConfigValue(id_val="unit", value=self._unit)]
        if self._words is not None:
            properties.append(dashboard.DynamicConfigValue(id_val="mappings", value=mappings(self._words)))
        if self._steps is not None:
            properties.append(
                dashboard.DynamicConfigValue(id_val="thresholds", value=thresholds(self._steps).build())
            )
        if self._words is not None or self._steps is not None:
            cell = {"type": "color-text"}
            properties.append(dashboard.DynamicConfigValue(id_val="custom.cellOptions", value=cell))
        return properties


def rows_of_instances(
    title: str, description: str, columns: Sequence[Column], *, labels: Sequence[str], hidden: Sequence[str]
) -> table.Panel:
    """Show a row for each instance. Every query returns one series for each `job` and `instance`.

    labels: labels that are columns, too, in this order, before the others. hidden: columns that only bring
    labels.
    """
    panel = _dressed(table.Panel(), title, description, 24, 9)
    for place, column in enumerate(columns):
        query = _query(place, column.expression, "").format(PromQueryFormat.TABLE).instant()
        panel.with_target(query).override_by_name(column.name, column.properties())
    names = {f"Value #{letter(place)}": column.name for place, column in enumerate(columns)}
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True}
                | {field: True for field, name in names.items() if name in hidden},
                "indexByName": {name: place for place, name in enumerate([*labels, *names])},
                "renameByName": names,
            },
        )
    )
    return panel


def page(title: str, description: str, markdown: str, *, height: int) -> text.Panel:
    """Show a text."""
    return _dressed(text.Panel(), title, description, 24, height).mode(TextMode.MARKDOWN).content(markdown)


def assemble(board: builders.Dashboard, rows: Mapping[str, Sequence[AnyPanel]]) -> builders.Dashboard:
    """Put rows of panels on a dashboard, and number them in this order."""
    place = 0
    for heading, panels in rows.items():
        place += 1
        board.with_row(builders.Row(heading).id(place))
        for panel in panels:
            place += 1
            board.with_panel(_Built(panel.id(place).build()))
    return board


class _Built(Builder[dashboard.Panel]):
    """A panel that is built already, in the form that the library expects."""

    def __init__(self, panel: dashboard.Panel) -> None:
        self._panel = panel

    def build(self) -> dashboard.Panel:
        return self._panel
