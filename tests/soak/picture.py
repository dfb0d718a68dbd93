"""The plot of a soak: memory, descriptors, tasks, the waits of the good client, and the requests."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.soak.record import Record, quantile
from tests.soak.sampling import Sample

OWN, OTHER, THIRD, INK = "#d9480f", "#8aa4bf", "#2b6c5a", "#24292f"
MIB = 1024
OUTCOMES = {"responses": OTHER, "rejected": OWN, "response_send_errors": THIRD}


def draw(record: Record, file: Path) -> None:
    """Write the plot as .svg or .png; the same record gives the same bytes."""
    with mpl.rc_context(
        {
            "svg.hashsalt": "triojam",
            "svg.fonttype": "none",
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(8, 11), layout="constrained")
        memory, descriptors, tasks, latency, requests = figure.subplots(5, sharex=True)
        _over_time(memory, record, "resident", lambda look: look.resident / MIB)
        _over_time(memory, record, "anonymous", lambda look: look.anonymous / MIB, color=OTHER)
        memory.set(title="memory (dots: at rest)", ylabel="MiB")
        memory.set_ylim(bottom=0)
        _over_time(descriptors, record, "open", lambda look: look.descriptors)
        descriptors.set(title="file descriptors")
        _over_time(tasks, record, "running", lambda look: look.running)
        tasks.set(title="tasks")
        _latency(latency, record)
        _requests(requests, record.looks)
        for moments, color, label in (
            (record.reloaded, OTHER, "reloads"),
            (record.restarts.moments, THIRD, "restarts of the other server"),
        ):
            if moments:
                minutes = [moment / 60 for moment in moments]
                descriptors.plot(minutes, [0] * len(minutes), "|", color=color, markersize=9, label=label)
        for axes in (memory, descriptors, latency, requests):
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=8)
        requests.set_xlabel("minutes")
        figure.savefig(file, facecolor="white", metadata={"Date": None} if file.suffix == ".svg" else None)


def _over_time(
    axes: Axes, record: Record, label: str, of: Callable[[Sample], float], *, color: str = OWN
) -> None:
    looks = record.looks
    axes.plot(
        [look.seconds / 60 for look in looks],
        [of(look) for look in looks],
        color=color,
        linewidth=0.8,
        alpha=0.5,
    )
    rests = record.rests
    axes.plot(
        [rest.seconds / 60 for rest in rests], [of(rest) for rest in rests], ".", color=color, label=label
    )


def _latency(axes: Axes, record: Record) -> None:
    """Draw the waits of the good client in each round."""
    rounds = [(each.after.seconds / 60, sorted([*each.kept, *each.fresh])) for each in record.rounds]
    rounds = [(minutes, latencies) for minutes, latencies in rounds if latencies]
    for label, part, color in (("longest", 1.0, OTHER), ("p99", 0.99, OWN), ("p50", 0.5, INK)):
        values = [quantile(latencies, part) * 1000 for _, latencies in rounds]
        axes.plot(
            [minutes for minutes, _ in rounds], values, color=color, label=label, marker=".", linewidth=0.8
        )
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(title="a good client among hostile ones: time to answer", ylabel="ms")


def _requests(axes: Axes, looks: Sequence[Sample]) -> None:
    pairs = [(a, b) for a, b in pairwise(looks) if b.seconds > a.seconds]
    minutes = [b.seconds / 60 for _, b in pairs]
    rates = [
        [(b.count(name) - a.count(name)) / (b.seconds - a.seconds) for a, b in pairs] for name in OUTCOMES
    ]
    labels = [name.removeprefix("response_").replace("_", " ") for name in OUTCOMES]
    axes.stackplot(minutes, rates, labels=labels, colors=list(OUTCOMES.values()), linewidth=0)
    axes.set(title="requests a second, by result")
