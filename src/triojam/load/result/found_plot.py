"""Draws what a search for the highest rate has found: the figure over the rate. Needs the extra `plot`."""

from functools import partial
from math import isfinite
from pathlib import Path

from matplotlib.figure import Figure

from triojam.load.result.found import Found
from triojam.load.result.plot import save_figure
from triojam.load.result.timeline import format_rate

# With figures this many times the goal, the scale is logarithmic.
_TALL = 10


def save_plot(found: Found, file: Path) -> None:
    """Write the picture as .svg or .png, by the file's suffix. Raises OSError."""
    save_figure(partial(_figure_of, found), file)


def _figure_of(found: Found) -> Figure:
    trials = found.search.trials
    finite = [trial.figure for trial in trials if isfinite(trial.figure)]
    top = 1.2 * max([*finite, found.limit]) or 1.0  # where infinite figures are drawn
    kinds = (
        ("held", "tab:green", "o", [trial for trial in trials if trial.held]),
        ("did not hold", "tab:red", "x", [t for t in trials if not t.held and not t.client_limited]),
        ("client too slow", "tab:gray", "s", [trial for trial in trials if trial.client_limited]),
    )
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for label, colour, marker, some in kinds:
        if some:
            heights = [min(trial.figure, top) for trial in some]
            axes.scatter([trial.rate for trial in some], heights, c=colour, marker=marker, label=label)
    axes.axhline(found.limit, color="tab:red", linestyle="--", label=found.goal)
    if (answer := found.search.answer) is not None:
        axes.axvline(
            answer.rate, color="tab:green", linestyle=":", label=f"{format_rate(answer.rate)} a second"
        )
    # Beyond the goal, a latency grows a hundred times and more.
    if min([*finite, found.limit]) > 0 and max([*finite, found.limit]) > _TALL * found.limit:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, top)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda rate, _: format_rate(rate))
    axes.yaxis.set_major_formatter(lambda value, _: found.shown(value))
    axes.set_xlim(0, found.largest_shown * 1.05 if trials else None)
    axes.set(title=f"{found.target}: {found.goal}", xlabel="requests a second", ylabel=found.figure)
    axes.legend()
    return figure
