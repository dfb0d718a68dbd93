"""A real Prometheus scrapes a running server with real clients."""

import json
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio

from tests.helpers.program import Program, launched, serving
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Address, fetch
from tests.helpers.servers import PATIENCE, receive_all

PACKAGE = "prometheus"
RULES = Path(__file__).parents[2] / "dashboards" / "prometheus" / "rules" / "*.yml"

CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: triojam
    static_configs: [{{targets: ["{host}:{port}"]}}]
"""

# What a client sends in one connection, the number of requests in it, and the number of times in the answers.
VISITS = [
    (b"TIME\r\n", 1, 1),
    (b"TIME\r\n" * 500, 500, 500),
    (b"TIME threading \r\n" * 3, 3, 3),
    (b"HELLO\r\nTIME\r\n", 2, 1),
    (b"TIME\n", 1, 0),
    (b"TIME\r\nQUIT\r\nTIME\r\n", 1, 1),
    (b"TIME", 1, 0),
    (b"x" * 600, 1, 0),
    (b"", 0, 0),
]
ROUNDS = 20
REQUESTS = ROUNDS * sum(requests for _, requests, _ in VISITS)
RESPONSES = ROUNDS * sum(responses for _, _, responses in VISITS)


async def use(program: Program) -> None:
    """Make all visits, those of a round at the same time."""

    async def visit(data: bytes, times: int) -> None:
        async with await program.connect() as client:
            await client.send_all(data)
            await client.send_eof()
            assert (await receive_all(client)).count(b"JAM ") == times

    for _ in range(ROUNDS):
        async with trio.open_nursery() as nursery:
            for data, _, times in VISITS:
                nursery.start_soon(visit, data, times)


@asynccontextmanager
async def scraping(target: Address, folder: Path) -> AsyncIterator[Address]:
    """Run a Prometheus that scrapes `target` and evaluates the rules; yield its address."""
    configuration = CONFIGURATION.format(rules=RULES, host=target[0], port=target[1])
    async with prometheus(configuration, folder) as address:
        yield address


@asynccontextmanager
async def prometheus(configuration: str, folder: Path) -> AsyncIterator[Address]:
    """Run a Prometheus with this configuration and its files in `folder`; yield its address."""
    file = folder / "prometheus.yml"
    file.write_text(configuration)
    command = [
        require_program("prometheus", PACKAGE),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    async with launched(command, {}) as process:
        assert process.stderr is not None
        log = b""
        with trio.fail_after(PATIENCE):
            # Prometheus 2 logs msg="Listening on" address=127.0.0.1:1234; Prometheus 3 quotes the address.
            while (found := re.search(rb'"Listening on" address="?127\.0\.0\.1:(\d+)"?\s', log)) is None:
                data = await process.stderr.receive_some()
                assert data, log
                log += data
        yield "127.0.0.1", int(found[1])


async def query(server: Address, expression: str) -> list[float]:
    """Return the values of an expression, without NaN."""
    values = [float(series["value"][1]) for series in await series_of(server, expression)]
    return [value for value in values if not math.isnan(value)]


async def series_of(server: Address, expression: str, at: float | None = None) -> list[dict[str, Any]]:
    """Return the series of an expression, each with its labels and its value, at this Unix time or now."""
    time = "" if at is None else f"&time={at}"
    reply = await fetch(server, f"/api/v1/query?query={quote(expression)}{time}")
    if reply.status == 503:  # still starting
        return []
    answer = json.loads(reply.body)
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


async def test_prometheus_counts_what_the_clients_sent(tmp_path: Path) -> None:
    """The counters in Prometheus agree with the requests and answers of the clients."""
    async with serving() as program, scraping(program.web, tmp_path) as server:
        await use(program)
        with trio.fail_after(PATIENCE):
            while await query(server, "sum(triojam_requests_total)") != [REQUESTS]:  # noqa: ASYNC110  # no event
                await trio.sleep(0.1)
        for expression, value in {
            "sum(triojam_responses_total)": RESPONSES,
            "sum(triojam_rejected_total)": REQUESTS - RESPONSES,
            "sum(triojam_response_send_errors_total)": 0,
            "sum(triojam_connections_total)": ROUNDS * len(VISITS),
            "sum(triojam_disconnects_total)": ROUNDS * len(VISITS),
            "triojam_request_duration_seconds_count": RESPONSES,
            "triojam_ready": 1,
            'up{job="triojam"}': 1,
        }.items():
            assert await query(server, expression) == [value], expression
        (skew,) = await query(server, "abs(time() - triojam_clock_seconds)")
        assert skew < PATIENCE


async def test_promtool_accepts_a_scrape() -> None:
    """`promtool check metrics` finds no fault in a scrape."""
    async with serving() as program:
        await use(program)
        reply = await fetch(program.web, "/metrics")
        with trio.fail_after(PATIENCE):
            ended = await trio.run_process(
                [require_program("promtool", PACKAGE), "check", "metrics"],
                stdin=reply.body,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    assert (ended.stdout, ended.stderr, ended.returncode) == (b"", b"", 0)
