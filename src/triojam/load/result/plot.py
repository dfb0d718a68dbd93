"""Draws the result of a load: latency by percentile, and the rate over time. Needs the extra `plot`."""

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from triojam.load.result.result import Result

_PERCENTILES = [0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99]


def save_plot(result: Result, file: Path) -> None:
    """Write the picture as .svg or .png, by the file's suffix. Raises OSError."""
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "triojam", "axes.grid": True, "grid.alpha": 0.3}
    ):
        figure = Figure(figsize=(8, 6), layout="constrained")
        latency, rate = figure.subplots(2)
        latency.plot(
            [1 / (1 - each / 100) for each in _PERCENTILES],
            [result.percentiles.at(each) * 1e3 for each in _PERCENTILES],
            marker="o",
            markersize=3,
        )
        shown = (0, 50, 90, 99, 99.9, 99.99)
        latency.set_xscale("log")
        latency.set_xticks([1 / (1 - each / 100) for each in shown], [f"{each:g} %" for each in shown])
        latency.minorticks_off()
        latency.set_ylim(bottom=0)
        latency.set(title=f"{result.target}: latency", xlabel="percentile", ylabel="ms")

        pairs = [(a, b) for a, b in pairwise(result.timeline) if b.seconds > a.seconds]
        times = [b.seconds for _, b in pairs]
        answered = [(b.settled - a.settled) / (b.seconds - a.seconds) for a, b in pairs]
        rate.step(times, answered, label="answered")
        failed = [(b.failed - a.failed) / (b.seconds - a.seconds) for a, b in pairs]
        if result.tally.failed:
            rate.step(times, failed, label="failed", color="tab:red")
            rate.legend()
        rate.set_ylim(0, max([*answered, *failed], default=0) * 1.1 or 1)
        rate.set(title="rate", xlabel="seconds", ylabel="requests a second")
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
