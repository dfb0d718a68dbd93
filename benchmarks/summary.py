"""Medians over the rounds, ratios within the rounds, and tables of both in markdown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.load import Sample
from benchmarks.rounds import Idle
from benchmarks.shapes import Shape


@dataclass(frozen=True)
class Row:
    """One server under one shape, over all successful rounds."""

    peer: str
    rate: float
    slowest: float
    fastest: float
    ratio: float | None
    cpu_us: float
    cpu_ratio: float | None
    p50_us: float
    p99_us: float
    p999_us: float
    client_share: float
    client_limit: float
    others: float
    rounds: int


def _median_ratio(top: Sequence[Sample | None], bottom: Sequence[Sample | None], of: str) -> float | None:
    """Return the median of the ratios of each round; None if no round has both values."""
    values = [
        getattr(one, of) / getattr(other, of)
        for one, other in zip(top, bottom, strict=True)
        if one is not None and other is not None and getattr(other, of)
    ]
    return statistics.median(values) if values else None


def rows(samples: Mapping[str, Sequence[Sample | None]], base: str, *, inverse: bool = False) -> list[Row]:
    """Summarize one shape; a ratio is the base server's value divided by the server's, or the inverse."""
    own = samples.get(base, [])

    def ratio(taken: Sequence[Sample | None], of: str) -> float | None:
        top, bottom = (taken, own) if inverse else (own, taken)
        return _median_ratio(top, bottom, of) if own else None

    summed = []
    for peer, taken in samples.items():
        good = [sample for sample in taken if sample is not None]
        if not good:
            continue
        rates = [sample.rate for sample in good]
        summed.append(
            Row(
                peer=peer,
                rate=statistics.median(rates),
                slowest=min(rates),
                fastest=max(rates),
                ratio=ratio(taken, "rate"),
                cpu_us=statistics.median(s.server_cpu_us for s in good),
                cpu_ratio=ratio(taken, "server_cpu_us"),
                p50_us=statistics.median(s.p50_us for s in good),
                p99_us=statistics.median(s.p99_us for s in good),
                p999_us=statistics.median(s.p999_us for s in good),
                client_share=statistics.median(s.client_share for s in good),
                client_limit=statistics.median(s.client_limit for s in good),
                others=statistics.median(s.others for s in good),
                rounds=len(good),
            )
        )
    return sorted(summed, key=lambda row: row.rate, reverse=True)


def _time(us: float) -> str:
    return f"{us / 1000:.1f} ms" if us >= 1000 else f"{us:.0f} µs"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def table(
    shape: Shape,
    shape_rows: Sequence[Row],
    titles: Mapping[str, str],
    base: str,
    *,
    inverse: bool = False,
) -> str:
    """Return a markdown table of one shape, and below it the limit of the client."""
    ratio = f"÷ {titles[base]}" if inverse else f"{titles[base]} ÷ it"
    heads = ["server", "requests/s", "slowest to fastest round", ratio, "CPU/request", ratio]
    heads += ["p50", "p99", "p99.9", "client's core"]
    lines = [f"### {shape.title}", "", f"| {' | '.join(heads)} |", "|:--" + "|--:" * 9 + "|"]
    for row in shape_rows:
        title = f"**{titles[row.peer]}**" if row.peer == base else titles[row.peer]
        cells = (
            title,
            f"{row.rate:,.0f}",
            f"{row.slowest:,.0f} to {row.fastest:,.0f}",
            _ratio(row.ratio),
            f"{row.cpu_us:.1f} µs",
            _ratio(row.cpu_ratio),
            _time(row.p50_us),
            _time(row.p99_us),
            _time(row.p999_us),
            f"{row.client_share:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if shape_rows:
        fastest, disturbed = shape_rows[0], max(row.others for row in shape_rows)
        note = (
            f"At {titles[fastest.peer]} the client's core was {fastest.client_share:.0%} busy; "
            f"full, it would ask {fastest.client_limit:,.0f} times a second. "
            f"Other programs had {disturbed:.0%} of the two cores during the most disturbed "
            "server's median round."
        )
        lines += ["", note, ""]
    return "\n".join(lines)


def idle_table(shape: Shape, idle: Mapping[str, Idle | None], titles: Mapping[str, str]) -> str:
    """Return a markdown table of the memory of idle connections."""
    lines = [
        f"### {shape.title}",
        "",
        "| server | memory per connection | without connections | with them |",
        "|:--|--:|--:|--:|",
    ]
    known = {peer: held for peer, held in idle.items() if held is not None}
    for peer, held in sorted(known.items(), key=lambda item: item[1].each_kib):
        title = f"**{titles[peer]}**" if peer == "triojam" else titles[peer]
        cells = (
            title,
            f"{held.each_kib:.2f} KiB",
            f"{held.before_kib / 1024:.1f} MiB",
            f"{held.after_kib / 1024:.1f} MiB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    failed = [titles[peer] for peer, held in idle.items() if held is None]
    if failed:
        lines += ["", f"Could not hold them: {', '.join(failed)}."]
    return "\n".join([*lines, ""])
