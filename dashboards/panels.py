"""Makes panels: the kinds that the dashboards use, all in one style.

`rows` has the content of the overview, and the reasons.
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
    text,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard, units
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from dashboards.queries import to_the_end
from dashboards.style import GREEN, GREY, Steps, Words, fixed, mappings, shades, thresholds

# A variable, not a name: every Grafana has another name for its data source.
DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
# The time range of a number with a graph, at every zoom: the number is of now, not of the last step.
RECENT = "30m"
COLUMNS = 24
NUMBER_HEIGHT = 5  # in a lower panel, Grafana draws no graph behind a number

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


def dressed(panel: P, title: str, description: str, width: int, height: int) -> P:
    """Give a panel what every panel has."""
    return panel.title(title).description(description).datasource(DATASOURCE).span(width).height(height)


def query(place: int, expression: str, legend: str) -> prometheus.Dataquery:
    """Make a query, named by its place in the panel."""
    made = prometheus.Dataquery().ref_id(letter(place)).datasource(DATASOURCE).expr(expression)
    return made.legend_format(legend)


def letter(place: int) -> str:
    """Return the name of the query at this place of a panel."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place]


def number(
    title: str,
    description: str,
    expression: str,
    *,
    unit: str = units.Short,
    steps: Steps = ((None, GREEN),),
    words: Words | None = None,
    decimals: int | None = None,
    empty: tuple[str, str] = ("no data", GREY),
    trend: bool = False,
    least: float | None = 0,
    width: int = 4,
    height: int = NUMBER_HEIGHT,
) -> stat.Panel:
    """Show the value of now, on a background whose colour shows whether it is good.

    empty: the text and its colour while there is no value. trend: draw the last half hour behind it, on
    an axis from `least`.
    """
    panel = (
        dressed(stat.Panel(), title, description, width, height)
        .unit(unit)
        .thresholds(thresholds(steps))
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .mappings(mappings(words or {}, empty))
        .color_mode(common.BigValueColorMode.BACKGROUND_SOLID)  # the other one changes the colour
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["last"]))
    )
    if decimals is not None:
        panel.decimals(decimals)
    if not trend:
        return panel.with_target(query(0, expression, "").instant())
    if least is not None:
        panel.min(least)
    return (
        panel.with_target(query(0, to_the_end(expression), "").range())
        .graph_mode(common.BigValueGraphMode.AREA)
        .time_from(RECENT)
        .hide_time_override(hide_time_override=True)
    )


def information(panel: stat.Panel, color: str) -> stat.Panel:
    """Show a number that is neither good nor bad, in the colour of its meaning."""
    return panel.color_mode(common.BigValueColorMode.VALUE).color_scheme(fixed(color))


def lines(
    title: str,
    description: str,
    queries: Queries,
    *,
    unit: str,
    color: str | Mapping[str, str],
    steps: Steps | None = None,
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
    decimals: int | None = None,
    width: int = 12,
) -> timeseries.Panel:
    """Show numbers over time; the legend has the last and the largest value of each.

    color: shades of it for all lines, or a colour for each legend. steps: dashed lines.
    stacked: the sum of the lines has a meaning. least, most: the ends of the axis.
    """
    legend = (
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.TABLE)
        # Below a graph, Grafana shows three names without scrolling.
        .placement(common.LegendPlacement.RIGHT if width >= COLUMNS / 2 else common.LegendPlacement.BOTTOM)
        .show_legend(show_legend=True)
        .calcs(["lastNotNull", "max"])
    )
    tooltip = (
        common_builders.VizTooltipOptions()
        .mode(common.TooltipDisplayMode.MULTI)
        .sort(common.SortOrder.DESCENDING)
    )
    panel = (
        dressed(timeseries.Panel(), title, description, width, 8)
        .unit(unit)
        .legend(legend)
        .tooltip(tooltip)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common.VisibilityMode.AUTO)
    )
    for place, (name, expression) in enumerate(queries.items()):
        panel.with_target(query(place, expression, name).range())
    if isinstance(color, str):
        panel.color_scheme(shades(color))
    else:
        panel.color_scheme(shades(GREY))
        for name in queries:
            property_ = dashboard.DynamicConfigValue(id_val="color", value=fixed(color[name]).build())
            panel.override_by_name(name, [property_])
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if decimals is not None:
        panel.decimals(decimals)
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
        dressed(statetimeline.Panel(), title, description, width, 5)
        .with_target(query(0, expression, legend).range())
        .mappings(mappings(words))
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds([(None, GREY)]))
        .merge_values(merge_values=True)
        .show_value(common.VisibilityMode.AUTO)
        .row_height(0.8)
    )


def heat(title: str, description: str, expression: str, *, width: int = 12) -> heatmap.Panel:
    """Show the buckets of a histogram over time."""
    buckets = query(0, expression, "{{le}}").format(PromQueryFormat.HEATMAP).range()
    color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.OPACITY).fill(GREEN)
    return (
        dressed(heatmap.Panel(), title, description, width, 8)
        .with_target(buckets)
        .calculate(calculate=False)
        .color(color.exponent(0.5).steps(64))
        .cell_gap(1)
        .exemplars_color(GREY)
        .y_axis(heatmap.YAxisConfig().unit(units.Seconds))
        .cell_values(heatmap.CellValues().unit(units.Short).decimals(0))
        .show_legend()
    )


def page(title: str, description: str, markdown: str, *, height: int) -> text.Panel:
    """Show a text."""
    return dressed(text.Panel(), title, description, 24, height).mode(TextMode.MARKDOWN).content(markdown)


def assemble(board: builders.Dashboard, rows: Mapping[str, Sequence[AnyPanel]]) -> builders.Dashboard:
    """Put rows of panels on a dashboard, and number them in this order.

    The first row is open. The queries of the others run when a reader opens them.
    """
    number = below = 0
    for heading, panels in rows.items():
        first = number == 0
        number += 1
        row = builders.Row(heading).id(number).grid_pos(dashboard.GridPos(h=1, w=COLUMNS, x=0, y=below))
        built = [panel.id(number + place).build() for place, panel in enumerate(panels, 1)]
        end = _place(built, below + 1)
        number += len(built)
        if first:
            board.with_row(row.collapsed(collapsed=False))
            below = end
        else:
            below += 1
        for panel in map(_Built, built):
            if first:
                board.with_panel(panel)
            else:
                row.with_panel(panel)
        if not first:
            board.with_row(row)
    return board


def _place(panels: Sequence[dashboard.Panel], top: int) -> int:
    """Give panels their places from left to right, line by line; return the end of the last line."""
    left, below = 0, top
    for panel in panels:
        place = panel.grid_pos or dashboard.GridPos()
        if left + place.w > COLUMNS:
            left, top = 0, below
        place.x, place.y = left, top
        left, below = left + place.w, top + place.h
    return below


class _Built(Builder[dashboard.Panel]):
    """A panel that is built already, in the form that the library expects."""

    def __init__(self, panel: dashboard.Panel) -> None:
        self._panel = panel

    def build(self) -> dashboard.Panel:
        return self._panel
