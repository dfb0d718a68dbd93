"""Draws the result of a load: latency by percentile, and the rate over time. Needs the extra `plot`.

With a rate that changes, a third chart shows the latency over the rate that was due.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triojam.client.files import write_whole
from triojam.load.result.percentiles import Percentiles
from triojam.load.result.result import Result
from triojam.load.result.timeline import is_within_plan, parts, rate_answered, rate_due

_DRAWN = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)
_NAMED = (0, 50, 90, 99, 99.9, 99.99)
# On the logarithmic axis, the longest stands this factor beyond the last percentile.
_LONGEST = 3


def save_plot(result: Result, file: Path) -> None:
    """Write the picture as .svg or .png, by the file's suffix. Raises OSError."""
    save_figure(partial(figure_of, result), file)


def save_figure(draw: Callable[[], Figure], file: Path) -> None:
    """Write a picture, whole or not at all. The same figure gives the same bytes. Raises OSError."""
    svg, picture = file.suffix != ".png", io.BytesIO()
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "triojam", "axes.grid": True, "grid.alpha": 0.3}
    ):
        draw().savefig(picture, format="svg" if svg else "png", metadata={"Date": None} if svg else None)
    write_whole(file, picture.getvalue())


def figure_of(result: Result) -> Figure:
    """Draw the result as a figure of matplotlib."""
    ramp = result.plan.last_rate is not None
    figure = Figure(figsize=(8, 9 if ramp else 6), layout="constrained")
    latency, rate, *knee = figure.subplots(3 if ramp else 2)
    _draw_latency(latency, result.percentiles)
    latency.set_title(f"{result.target}: latency")
    _draw_rate(rate, result)
    for axes in knee:
        _draw_knee(axes, result)
    return figure


def _draw_latency(axes: Axes, percentiles: Percentiles) -> None:
    """Draw latency by percentile, as far as the sample carries it, and the longest."""
    drawn = [each for each in _DRAWN if percentiles.carries(each)]
    places = [1 / (1 - each / 100) for each in drawn]
    if drawn:
        drawn.append(100)
        places.append(places[-1] * _LONGEST)
    points = [
        (place, percentiles.at(each) * 1e3, percentiles.is_exact(each))
        for place, each in zip(places, drawn, strict=True)
    ]
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color="tab:blue")
    exact = [(x, y) for x, y, known in points if known]
    axes.plot([x for x, _ in exact], [y for _, y in exact], "o", markersize=3, color="tab:blue")
    if bounds := [(x, y) for x, y, known in points if not known]:
        axes.plot(
            [x for x, _ in bounds], [y for _, y in bounds], "^", color="tab:red", label="longer: no answer"
        )
        axes.legend()
    ticks = [(place, f"{each:g} %") for place, each in zip(places, drawn, strict=True) if each in _NAMED]
    if places:
        ticks.append((places[-1], "longest"))
    axes.set_xscale("log")
    axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="percentile", ylabel="ms")


def _draw_rate(axes: Axes, result: Result) -> None:
    """Draw what was due, answered and failed over time."""
    pairs = parts(result.timeline)
    times = [now.seconds for _, now in pairs]
    answered = [rate_answered(before, now) for before, now in pairs]
    failed = [(now.failed - before.failed) / (now.seconds - before.seconds) for before, now in pairs]
    due = [rate for before, now in pairs if (rate := rate_due(result.plan, before, now)) is not None]
    axes.step(times, answered, label="answered")
    if due:
        axes.step(times, due, "--", label="due", color="tab:gray")
    if result.tally.failed:
        axes.step(times, failed, label="failed", color="tab:red")
    if due or result.tally.failed:
        axes.legend()
    axes.set_ylim(0, max([*answered, *failed, *due], default=0) * 1.1 or 1)
    axes.set(title="rate", xlabel="seconds", ylabel="requests a second")


def _draw_knee(axes: Axes, result: Result) -> None:
    """Draw latency over the rate that was due, for each part of the ramp with answers."""
    plan = result.plan
    pairs = [
        (before, now)
        for before, now in parts(result.timeline)
        if now.is_measured and is_within_plan(plan, before, now)
    ]
    due = [rate_due(plan, before, now) or 0.0 for before, now in pairs]
    for name, color, values in (
        ("p50", "tab:blue", [now.p50 for _, now in pairs]),
        ("p99", "tab:orange", [now.p99 for _, now in pairs]),
    ):
        axes.plot(due, [each * 1e3 for each in values], "o", markersize=3, color=color, label=name)
    axes.legend()
    axes.set_ylim(bottom=0)
    axes.set(title="latency over rate", xlabel="requests a second due", ylabel="ms")
