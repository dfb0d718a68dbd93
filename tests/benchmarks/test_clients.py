"""`triojam load` beside the client in C: what the comparison measures and writes, not how fast it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.clients.cases import CASES, Case
from benchmarks.clients.figures import by_c, by_load
from benchmarks.clients.table import BEGIN, END, HEADS, around_table, table
from benchmarks.fleet import Server, up
from benchmarks.load import build_client
from benchmarks.process import free_port
from benchmarks.registry import MissingError, Peer, delaying
from benchmarks.rounds import Plan
from benchmarks.shapes import Shape

from tests.helpers import pages
from tests.helpers.program import UNMEASURED, environment
from tests.helpers.requirements import cannot_run

DELAY_MS = 20
# The client in C knows a latency to 0.1 %.
LEAST_US = DELAY_MS * 1000 * 0.999


@pytest.mark.xdist_group("crowds")
def test_both_clients_see_a_known_delay(tmp_path: Path) -> None:
    """In a closed and in an open loop no request fails, and neither client reports less than the delay."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    cases = ("closed-20ms", "open-20ms")
    command = ["clients", "--rounds=1", "--retries=0", "--seconds=1", f"--cases={','.join(cases)}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command, f"--out={tmp_path}", f"--page={page}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment(**UNMEASURED, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    if "apt install gcc" in done.stderr + done.stdout:
        cannot_run("cc is missing: apt install gcc libc6-dev")
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = json.loads((tmp_path / "clients.json").read_text())["rounds"]
    assert tuple(rounds) == cases
    for (only,) in rounds.values():
        for figures in (only["c"], only["load"]):
            assert LEAST_US <= figures["p50_us"] <= figures["p90_us"] <= figures["p99_us"]
            assert figures["rate"] > 0
    before, begin, *lines, end, after = page.read_text().splitlines()
    assert (before, begin, end, after) == ("before", BEGIN, END, "after")
    heads, _, *rows = [line for line in lines if line.startswith("|")]
    assert heads == f"| {' | '.join(HEADS)} |"
    titles = ["closed, 8 connections", "open, 500/s, 50 connections"]
    assert [row.split(" | ")[:2] for row in rows] == [[f"| {each}", "answers after 20 ms"] for each in titles]


@pytest.mark.xdist_group("crowds")
def test_latency_of_c_client_counts_from_when_a_request_was_due(tmp_path: Path) -> None:
    """One connection gets 50 answers a second; of 100 requests a second the later ones wait for it."""
    shape = Shape("late", "open, 100/s, 1 connection", "open", 1, rate=100)
    try:
        client = build_client(tmp_path)
        with up(Peer("delay", "delay", delaying(DELAY_MS)), tmp_path) as server:
            figures = by_c(client, server, shape, 0.5)
    except MissingError as missing:
        cannot_run(str(missing))
    assert figures is not None
    # The request in the middle is due 0.35 s after the first, behind 35 others that take 20 ms each.
    assert figures.p50_us > 300_000


def test_load_without_an_answer_is_a_failed_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that cannot be reached gives no figures but a reason, and the row of the table says so."""
    case = CASES[0]
    server = Server(case.server, os.getpid(), free_port(), None)
    assert by_load(server, case.shape, 0.1, tmp_path) is None
    assert "triojam load failed, closed, 1 connection: " in capsys.readouterr().out
    text = table([(case, [])], Plan(rounds=2, seconds=0.1, retries=0))
    assert f"| {case.shape.title} | {case.server.title} | failed |" in text
    assert f"because a request failed: 2 ({case.shape.title}, {case.server.title})." in text


def test_page_without_markers_is_refused(tmp_path: Path) -> None:
    """A page without the place of the table is named, with the lines that it needs."""
    page = tmp_path / "page.md"
    page.write_text(f"text\n{BEGIN}\n")
    with pytest.raises(SystemExit, match=r"page\.md needs the lines <!-- begin: .* <!-- end: "):
        around_table(page)


def test_page_has_a_row_for_each_case() -> None:
    """The table in docs/performance.md is that of the command, with all cases."""

    def titles(case: Case) -> list[str]:
        return [case.shape.title, case.server.title]

    rows = pages.table("docs/performance.md", "The clients' own precision")
    assert [row[:2] for row in rows] == [titles(case) for case in CASES]
    assert all(len(row) == len(HEADS) and all(row) for row in rows)
    assert f"| {' | '.join(HEADS)} |" in pages.read("docs/performance.md")
