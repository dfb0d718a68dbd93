"""One SVG per shape: bars, with the range of the rounds as whiskers, and triojam in its own colour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OWN, OTHER, INK = "#d9480f", "#8aa4bf", "#24292f"


@dataclass(frozen=True)
class Bar:
    """A server's median, and its lowest and highest round."""

    label: str
    value: float
    low: float
    high: float
    own: bool


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def draw(title: str, unit: str, bars: Sequence[Bar], target: Path) -> None:
    """Write one plot: white background in any theme, and the same bytes for the same numbers."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(
        {
            "svg.hashsalt": "triojam",
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    ):
        figure, axes = plt.subplots(figsize=(8, 0.7 + 0.32 * len(bars)), layout="constrained")
        values = [bar.value for bar in bars]
        spread = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
        axes.barh(
            [bar.label for bar in bars],
            values,
            color=[OWN if bar.own else OTHER for bar in bars],
            xerr=spread,
            error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 3},
        )
        furthest = max(bar.high for bar in bars)
        for place, bar in enumerate(bars):
            axes.text(bar.high + furthest * 0.015, place, _number(bar.value), va="center", size=9)
        axes.invert_yaxis()
        axes.set_xlim(0, furthest * 1.14)
        axes.set_title(f"{title} ({unit})", loc="left", size=11)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
            label.set_fontweight("bold" if bar.own else "normal")
        figure.savefig(target, format="svg", facecolor="white", metadata={"Date": None})
        plt.close(figure)


def draw_all(plots: Mapping[str, tuple[str, str, Sequence[Bar]]], folder: Path) -> None:
    """Write every plot, or print in one line why there are none."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        print("no plots: matplotlib is missing: pip install 'triojam[bench]'")
        return
    for name, (title, unit, bars) in plots.items():
        if bars:
            draw(title, unit, bars, folder / f"{name}.svg")
