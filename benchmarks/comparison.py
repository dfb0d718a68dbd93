"""The default run: triojam compared with its peers."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.fleet import all_up, fault
from benchmarks.load import build_client
from benchmarks.machine import described, sentence
from benchmarks.plots import Bar, draw_all
from benchmarks.registry import TRIOJAM, Peer
from benchmarks.rounds import Idle, Plan, Samples, hold_idle, play
from benchmarks.shapes import BY_NAME, Shape
from benchmarks.summary import Row, idle_table, rows, table


def _plots(
    summed: dict[str, list[Row]], idle: dict[str, Idle | None], titles: dict[str, str]
) -> dict[str, tuple[str, str, Sequence[Bar]]]:
    plots: dict[str, tuple[str, str, Sequence[Bar]]] = {}
    for name, shape_rows in summed.items():
        bars = [
            Bar(titles[r.peer], r.rate, r.slowest, r.fastest, r.peer.startswith(TRIOJAM.name))
            for r in shape_rows
        ]
        plots[name] = (BY_NAME[name].title, "requests/s", bars)
    held = sorted((h.each_kib, peer) for peer, h in idle.items() if h is not None)
    if held:
        bars = [Bar(titles[p], v, v, v, p.startswith(TRIOJAM.name)) for v, p in held]
        plots["idle"] = (BY_NAME["idle"].title, "KiB each, less is better", bars)
    return plots


def write_result(out: Path, name: str, result: dict[str, object], text: str) -> str:
    """Write a text, and a JSON file, both with the machine; print and return the text."""
    out.mkdir(parents=True, exist_ok=True)
    description = described()
    text = f"{text}\n{sentence(description)}\n"
    (out / f"{name}.json").write_text(json.dumps(description | result, indent=1) + "\n")
    (out / f"{name}.md").write_text(text)
    print(text)
    return text


def write(
    out: Path,
    name: str,
    samples: Samples,
    summed: dict[str, list[Row]],
    more: dict[str, object],
    text: str,
) -> None:
    """Write the table, and a JSON file with every round; print the table."""
    all_rounds = {
        shape: {peer: [s and s.as_json() for s in taken] for peer, taken in by_peer.items()}
        for shape, by_peer in samples.items()
    }
    result = {
        "summary": {shape: [asdict(row) for row in found] for shape, found in summed.items()},
        "rounds": all_rounds,
        **more,
    }
    write_result(out, name, result, text)


def compare(
    peers: Sequence[Peer],
    shapes: Sequence[Shape],
    plan: Plan,
    out: Path,
    build: Path,
) -> int:
    """Run everything; return the number of servers with wrong answers."""
    client = build_client(build)
    titles = {peer.name: peer.title for peer in peers}
    timed = [shape for shape in shapes if shape.mode != "idle"]
    skipped: dict[str, str] = {}
    wrong = 0
    with all_up(peers, build, skipped) as servers:
        for server in servers[:]:
            found = fault(server.port, server.peer.dialogue)
            if found:
                wrong += 1
                skipped[server.peer.name] = found
                servers.remove(server)
                print(f"left out {server.peer.title}: {found}")
        fit = [server.peer for server in servers]
        samples = play(client, servers, timed, plan)
    idle: dict[str, Idle | None] = {}
    for shape in shapes:
        if shape.mode == "idle":
            print(shape.title, flush=True)
            idle = {peer.name: hold_idle(client, peer, shape, build) for peer in fit}
    summed = {shape.name: rows(samples[shape.name], TRIOJAM.name) for shape in timed}
    parts = [table(shape, summed[shape.name], titles, TRIOJAM.name) for shape in timed]
    if idle:
        parts.append(idle_table(BY_NAME["idle"], idle, titles))
    parts += [f"Skipped: {titles[name]} ({why})." for name, why in skipped.items()]
    more: dict[str, object] = {
        "idle": {p: h and asdict(h) | {"each_kib": h.each_kib} for p, h in idle.items()},
        "skipped": skipped,
        "titles": titles,
    }
    write(out, "comparison", samples, summed, more, "\n".join(parts))
    draw_all(_plots(summed, idle, titles), out)
    return wrong
