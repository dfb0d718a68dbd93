"""All cases, measured by both clients in interleaved rounds."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.clients.cases import Case
from benchmarks.clients.figures import Figures, by_c, by_load
from benchmarks.clients.table import Round, around_table, table
from benchmarks.comparison import write_result
from benchmarks.fleet import Server, all_up, fault
from benchmarks.load import build_client
from benchmarks.registry import MissingError
from benchmarks.rounds import Plan, least_disturbed


def _play(
    client: str, servers: dict[str, Server], cases: Sequence[Case], plan: Plan, build: Path
) -> list[list[Round]]:
    """Return the rounds of each case; a round in which a request failed is left out."""
    draw = random.Random(1)
    measured: list[list[Round]] = [[] for _ in cases]
    for number in range(1, plan.rounds + 1):
        for case, rounds in zip(cases, measured, strict=True):
            print(f"round {number} of {plan.rounds}: {case.shape.title}, {case.server.title}", flush=True)
            server = servers[case.server.name]
            ways: dict[str, Callable[[], Figures | None]] = {
                "c": partial(by_c, client, server, case.shape, plan.seconds),
                "load": partial(by_load, server, case.shape, plan.seconds, build),
            }
            order = draw.sample(sorted(ways), len(ways))
            found = {name: least_disturbed(ways[name], plan.retries) for name in order}
            if found["c"] is not None and found["load"] is not None:
                rounds.append(Round(found["c"], found["load"]))
    return measured


def compare_clients(cases: Sequence[Case], plan: Plan, out: Path, page: Path | None, build: Path) -> int:
    """Measure, write the table, and put it into the page; return the number of rounds that failed."""
    if page is not None:
        around_table(page)  # a page without markers is an error now, not after all rounds
    client = build_client(build)
    wrong: dict[str, str] = {}
    with all_up({case.server.name: case.server for case in cases}.values(), build, wrong) as running:
        servers = {server.peer.name: server for server in running}
        for name, server in servers.items():
            if found := fault(server.port, server.peer.dialogue):
                wrong[name] = found
        if wrong:
            raise MissingError("; ".join(f"{name}: {why}" for name, why in wrong.items()))
        measured = list(zip(cases, _play(client, servers, cases, plan, build), strict=True))
    all_rounds = {case.shape.name: [asdict(each) for each in rounds] for case, rounds in measured}
    text = write_result(out, "clients", {"rounds": all_rounds}, table(measured, plan))
    if page is not None:
        before, after = around_table(page)
        page.write_text(f"{before}{text}{after}", "utf-8")
    return sum(plan.rounds - len(rounds) for _, rounds in measured)
