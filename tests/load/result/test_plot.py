"""The picture of a result."""

import os
from collections.abc import Callable
from errno import ENOSPC
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D

from tests.load.result.results import answers, make, timeline
from triojam.load.plan import Plan
from triojam.load.result import found_plot
from triojam.load.result.found import Found
from triojam.load.result.plot import figure_of, save_plot
from triojam.load.search import Search


def points(line: Line2D) -> tuple[list[float], list[float]]:
    """Return the points of a line, horizontally and vertically."""
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


FOUND = Found(
    target="a:1", goal="p99<5ms", figure="p99", limit=0.005, shown=str, search=Search(1000, budget=3)
)
MOMENTS = timeline((0.0, 0, 0), (1.0, 5, 0), (2.0, 5, 3), (3.0, 20, 4))


def test_the_rate_due_is_drawn_beside_the_rate_answered() -> None:
    """A closed loop has none; failures have a line of their own."""
    for plan, tally, labels in (
        (Plan(), answers({40: 20}), ["answered"]),
        (Plan(rate=5.0, seconds=2.0), answers({40: 20}), ["answered", "due"]),
        (Plan(), answers({40: 20}, longer={90: 4}), ["answered", "failed"]),
    ):
        _, rate = figure_of(make(plan, tally=tally, timeline=MOMENTS)).axes
        drawn = {str(line.get_label()): points(line)[1] for line in rate.lines}
        assert list(drawn) == labels
        assert drawn["answered"] == [5, 0, 15]
        assert drawn.get("due", [5, 5, 0]) == [5, 5, 0]
        assert drawn.get("failed", [0, 3, 1]) == [0, 3, 1]


def test_a_ramp_has_a_chart_of_latency_over_rate() -> None:
    """It has p50 and p99 of each part of the ramp with answers, at the rate that was due."""
    plan = Plan(rate=10.0, last_rate=40.0, seconds=3.0, warm_up=1.0)
    moments = timeline((1.0, 5, 0), (2.0, 7, 0), (3.0, 7, 3), (4.0, 20, 4), (4.5, 21, 4))
    *_, knee = figure_of(make(plan, tally=answers({40: 20}), timeline=moments)).axes
    drawn = {str(line.get_label()): points(line) for line in knee.lines}
    assert list(drawn) == ["p50", "p99"]
    for name, latency in (("p50", 0.04), ("p99", 1.1)):
        due, latencies = drawn[name]
        assert due == pytest.approx([15, 35])
        assert latencies == pytest.approx([latency, latency])


def test_the_latencies_end_with_the_longest() -> None:
    """Percentiles that the sample does not carry are not drawn; the last point is the longest."""
    latency, _ = figure_of(make(tally=answers({1000: 99, 7000: 1}))).axes
    places, latencies = points(latency.lines[0])
    assert latencies == [1.0] * 8 + [7.0]
    assert all(left < right for left, right in pairwise(places))
    assert [label.get_text() for label in latency.get_xticklabels()] == [
        "0 %", "50 %", "90 %", "99 %", "longest"
    ]  # fmt: skip


def test_lower_bounds_are_drawn_with_another_sign() -> None:
    """A legend says that the true latencies are longer."""
    latency, _ = figure_of(make(tally=answers({1000: 95}, longer={5_000_000: 5}))).axes
    _, exact, bounds = latency.lines
    assert points(exact)[1] == [1.0] * 7
    assert points(bounds)[1] == [5000.0] * 2
    assert bounds.get_label() == "longer: no answer"


@pytest.mark.parametrize("latencies", [{}, {0: 1}])
def test_any_sample_can_be_drawn(tmp_path: Path, latencies: dict[int, int]) -> None:
    """The same result gives the same picture."""
    result = make(Plan(rate=1.0, last_rate=2.0), tally=answers(latencies), timeline=MOMENTS[:1])
    files = [tmp_path / name for name in ("first.svg", "second.svg", "third.png")]
    for file in files:
        save_plot(result, file)
    first, second, third = (file.read_bytes() for file in files)
    assert b"<svg" in first
    assert first == second
    assert third.startswith(b"\x89PNG")


@pytest.mark.parametrize("save", [partial(save_plot, make()), partial(found_plot.save_plot, FOUND)])
def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path], None]
) -> None:
    """On a full disk, the file keeps its content."""

    def full(_file: int) -> None:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    file = tmp_path / "old.svg"
    file.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save(file)
    assert caught.value.filename == str(file)
    assert file.read_bytes() == b"old"
