"""The dashboards with a hundred servers: Prometheus returns no more than a panel can show."""

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.dashboards.content import BOARDS, DASHBOARDS, FLEET, filled, load, named, panels
from tests.dashboards.test_dashboards import OF_THE_KERNEL, OF_TLS
from tests.dashboards.test_prometheus import prometheus, series_of
from tests.dashboards.test_rules import run_promtool
from tests.helpers.pages import table
from tests.helpers.program import Program, serving
from tests.helpers.scrape import Address, fetch
from tests.helpers.servers import PATIENCE
from tests.helpers.waiting import eventually

SERVERS = 100
# They come last in the alphabet, and must be the first in the table.
DEAD = ["zz1:45001", "zz2:45001", "zz3:45001"]
LIVING = [f"time{number}:45001" for number in range(SERVERS - len(DEAD))]

# All living servers are one: its metrics are scraped once for each name.
CONFIGURATION = """
global: {{scrape_interval: 2s, evaluation_interval: 2s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: clocks
    static_configs:
      - {{targets: {living}, labels: {{__tmp_address: "{exporter}"}}}}
      - {{targets: {dead}, labels: {{__tmp_address: "127.0.0.1:1"}}}}
    relabel_configs:
      - {{source_labels: [__address__], target_label: instance}}
      - {{source_labels: [__tmp_address], target_label: __address__}}
  - job_name: haproxy
    static_configs: [{{targets: ["{haproxy}"]}}]
"""
HAPROXY = "".join(
    f'haproxy_server_current_sessions{{proxy="triojam",server="time{number}"}} {number}\n'
    for number in range(SERVERS)
)
BEGINNING = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\r\n"

# The most series of a query, by the kind of the panel. A number may have one for each version.
MOST = {"table": 50, "timeseries": 20, "state-timeline": 20, "stat": 2, "heatmap": 40}
BEFORE = 4.0  # seconds, longer than a scrape
# Not in every scrape.
MISSING = OF_THE_KERNEL | OF_TLS
LONG = 3 * PATIENCE


@asynccontextmanager
async def exporter(text: Callable[[], str]) -> AsyncIterator[Address]:
    """Serve a text as metrics."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += await stream.receive_some()
            await stream.send_all(BEGINNING + text().encode())

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()
        nursery.cancel_scope.cancel()


class Copy:
    """The newest metrics of a server."""

    text = ""

    async def follow(self, program: Program) -> None:
        """Use the server, and read its metrics again and again."""
        while True:
            async with await program.connect() as client:
                await client.send_all(b"TIME\r\n" * 10)
                await client.receive_some()
            self.text = (await fetch(program.web, "/metrics")).text
            await trio.sleep(0.5)  # a gentle load


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Address]:
    """Run a Prometheus with a hundred servers, three of them dead; return its address."""
    copy = Copy()
    async with (
        serving() as program,
        exporter(lambda: copy.text) as living,
        exporter(lambda: HAPROXY) as haproxy,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(copy.follow, program)
        configuration = CONFIGURATION.format(
            rules=DASHBOARDS / "prometheus" / "rules" / "recording.yml",
            living=json.dumps(LIVING),
            dead=json.dumps(DEAD),
            exporter=f"{living[0]}:{living[1]}",
            haproxy=f"{haproxy[0]}:{haproxy[1]}",
        )
        async with prometheus(configuration, tmp_path) as address:
            yield address
        nursery.cancel_scope.cancel()


async def test_a_hundred_servers_are_bounded(fleet: Address) -> None:
    """Each query returns at most what its panel shows; the table has the same servers in each column."""
    chosen = {"job": ["clocks"], "instance": [*LIVING, *DEAD]}

    async def scraped() -> bool:
        expression = "count(rate(triojam_requests_total[10s]) > 0)"
        return [float(each["value"][1]) for each in await series_of(fleet, expression)] == [len(LIVING)]

    await eventually(scraped, patience=LONG)
    per_server = 0
    for board in BOARDS:
        for panel in panels(load(board)):
            for target in panel["targets"]:
                found = await series_of(fleet, filled(target["expr"], **chosen))
                assert len(found) <= MOST[panel["type"]], panel["title"]
                if re.search(r"\{\{(instance|server)\}\}", target["legendFormat"]):
                    least = 0 if named(target["expr"]) & MISSING else 10
                    assert len(found) in (least, 10, 20), panel["title"]
                    per_server += 1
    assert per_server > 5

    (servers,) = [panel for panel in panels(load(FLEET)) if panel["title"] == "Each server"]
    first, *others = servers["targets"]
    columns = [filled(target["expr"], **chosen) for target in others if not named(target["expr"]) & MISSING]
    assert len(columns) == len(others) - 1  # without the certificate

    async def one_choice() -> bool:
        # As Grafana does, all queries are for the same moment; its scrapes have ended.
        at = time.time() - BEFORE
        worst = await instances(fleet, filled(first["expr"], **chosen), at)
        found = [await instances(fleet, expression, at) for expression in columns]
        return (
            len(worst) == MOST["table"]
            and set(DEAD) < worst
            and all(each in (worst, worst - set(DEAD)) for each in found)
        )

    await eventually(one_choice, patience=LONG)


async def instances(server: Address, expression: str, at: float) -> set[str]:
    """Return the servers in the result of an expression."""
    return {each["metric"]["instance"] for each in await series_of(server, expression, at)}


# Values after one scrape: there are no rates yet.
STATES: Mapping[str, Mapping[str, float]] = {
    "dead": {"up": 0},
    "starting": {"up": 1, "triojam_ready": 0, "triojam_connections_open": 0},
    "full": {"up": 1, "triojam_ready": 1, "triojam_connections_open": 9},
    "new": {"up": 1, "triojam_ready": 1, "triojam_connections_open": 0},
}
TROUBLE = {"dead": 16, "starting": 8, "full": 1, "new": 0}


def test_a_new_server_is_in_the_table(tmp_path: Path) -> None:
    """A server is in the table after its first scrape, and the number for its place is right."""
    (servers,) = [panel for panel in panels(load(FLEET)) if panel["title"] == "Each server"]
    expression = filled(servers["targets"][0]["expr"], job=["clocks"], instance=list(STATES))
    case = {
        "interval": "15s",
        "input_series": [
            {"series": f'{name}{{job="clocks", instance="{server}"}}', "values": str(value)}
            for server, values in STATES.items()
            for name, value in {**values, "triojam_connections_limit": 10}.items()
        ],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": "0s",
                "exp_samples": [
                    {"labels": f'{{job="clocks", instance="{server}"}}', "value": value}
                    for server, value in TROUBLE.items()
                ],
            }
        ],
    }
    file = tmp_path / "new.yml"
    file.write_text(json.dumps({"tests": [case]}))
    run_promtool("test", "rules", file)


def test_the_readme_has_each_row_of_the_fleet() -> None:
    """The table of rows in the README has the rows of the fleet's dashboard."""
    headings = [panel["title"] for panel in load(FLEET)["panels"] if panel["type"] == "row"]
    assert [row[0] for row in table("dashboards/README.md", "The dashboard of a fleet")] == headings
