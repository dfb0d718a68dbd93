"""The first row of the overview in a Prometheus that scrapes other programs, too."""

import json
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio

from tests.dashboards.content import DASHBOARDS, FLEET, OVERVIEW, filled, first_row, load, panels, variable
from tests.dashboards.test_prometheus import prometheus, query, series_of
from tests.helpers.program import Program, serving
from tests.helpers.scrape import Address
from tests.helpers.servers import PATIENCE, receive_all
from tests.helpers.waiting import eventually

# Three jobs; only the first is triojam's, under another name. Prometheus's own port is in the last file.
CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{recording}", "{alerts}"]
scrape_configs:
  - job_name: clocks
    static_configs: [{{targets: {servers}}}]
  - job_name: node
    static_configs: [{{targets: ["{exporter}", "127.0.0.1:1"]}}]
  - job_name: prometheus
    file_sd_configs: [{{files: ["{itself}"], refresh_interval: 1s}}]
"""
ALERTS = """
groups:
  - name: test
    rules:
      - {alert: TriojamDown, expr: up == 0, labels: {severity: page}}
"""
# The other program has started in the future and uses a thousand processors, so that it shows in any panel.
EXPORTER = """
process_start_time_seconds 4e9
process_cpu_seconds_total {cpu}
process_resident_memory_bytes 1e15
process_open_fds 1e9
process_max_fds 1
"""
BEGINNING = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\r\n"

LONG = 3 * PATIENCE  # rates of ten seconds, beside other tests

Range = tuple[float, float]
# The least and the largest right value of each number. Of the three servers one hangs, and one is full and
# refuses clients. Of the targets of other jobs one is down.
RIGHT: Mapping[str, Range] = {
    "Servers down": (1, 1),  # the one that hangs
    "Servers not ready": (1, 1),  # the same; the full one answers its clients
    "Alerts firing": (1, 1),  # not the one of the other job
    "Success ratio": (0.5, 0.99),  # 9 answers for each refused connection
    "Refused as busy": (0.1, 1000),
    "Largest clock offset": (0, 1),
    "Requests": (1, 10_000),
    "99 % answered in": (0, 1),
    "Fullest server": (1, 1),
    "Unaccounted": (0, 0),
    "Shortest uptime": (0, 3600),
    "Version": (2, 2),  # of the two that Prometheus can scrape
}
NOTHING: Range = (1, -1)
# The same after the death of all three servers. The other numbers have no value then.
DEAD: Mapping[str, Range] = dict.fromkeys(RIGHT, NOTHING) | {
    "Servers down": (3, 3),
    "Servers not ready": (3, 3),
    "Alerts firing": (3, 3),
    "Unaccounted": (0, 0),  # it is of the last minute
}


@asynccontextmanager
async def exporter() -> AsyncIterator[Address]:
    """Run the other program."""
    scrapes = 0

    async def answer(stream: trio.SocketStream) -> None:
        nonlocal scrapes
        scrapes += 1
        async with stream:
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += await stream.receive_some()
            await stream.send_all(BEGINNING + EXPORTER.format(cpu=1000 * scrapes).encode())

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, answer, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        yield listener.socket.getsockname()
        nursery.cancel_scope.cancel()


@contextmanager
def stopped(program: Program) -> Iterator[None]:
    """Stop a process without its end: it accepts connections, and does nothing."""
    program.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        program.process.send_signal(signal.SIGCONT)


async def values_of(server: Address, name: str, **chosen: list[str]) -> list[str]:
    """Return the values that Grafana finds for a variable of the overview."""
    given = variable(name)
    asked = re.fullmatch(r"query_result\((.*)\)", given["query"]["query"])
    assert asked
    lines = [
        "{" + ",".join(f'{label}="{value}"' for label, value in series["metric"].items()) + "}"
        for series in await series_of(server, filled(asked[1], **chosen))
    ]
    pattern = re.compile(given["regex"].strip("/"))
    return sorted(found[1] for line in lines if (found := pattern.search(line)))


async def chosen_by_all(server: Address) -> dict[str, list[str]]:
    """Return what All stands for in the variables."""
    jobs = await values_of(server, "job")
    return {"job": jobs, "instance": await values_of(server, "instance", job=jobs) if jobs else []}


def expression(title: str, chosen: dict[str, list[str]], board: Path = OVERVIEW) -> str:
    """Return the first expression of a panel."""
    (panel,) = [each for each in panels(load(board)) if each["title"] == title]
    return filled(panel["targets"][0]["expr"], **chosen)


async def numbers(server: Address, chosen: dict[str, list[str]]) -> dict[str, list[float]]:
    """Return the values of each number of the first row."""
    return {
        panel["title"]: await query(server, filled(panel["targets"][0]["expr"], **chosen))
        for panel in first_row(load(OVERVIEW))
        if panel["type"] == "stat"
    }


def wrong(found: Mapping[str, list[float]], right: Mapping[str, Range]) -> dict[str, list[float]]:
    """Return the numbers that are not right."""
    assert found.keys() == right.keys()
    return {
        title: values
        for title, values in found.items()
        if not (
            values == []
            if right[title] == NOTHING
            else len(values) == 1 and right[title][0] <= values[0] <= right[title][1]
        )
    }


async def use(healthy: Program, full: Program) -> None:
    """Ask one server nine times for each connection that the other one refuses."""
    while True:
        async with await healthy.connect() as client:
            await client.send_all(b"TIME\r\n" * 9)
            await client.send_eof()
            assert (await receive_all(client)).count(b"JAM ") == 9
        async with await full.connect() as client:
            assert (await receive_all(client)).startswith(b"ERROR busy")
        await trio.sleep(0.1)  # a gentle load


async def test_the_first_row_is_right_beside_other_jobs(tmp_path: Path) -> None:
    """Each number is right: with a healthy, a hanging and a full server, and after the death of all."""
    alerts, itself = tmp_path / "alerts.yml", tmp_path / "itself.json"
    alerts.write_text(ALERTS)
    itself.write_text("[]")
    async with (
        exporter() as foreign,
        serving() as healthy,
        serving() as hanging,
        serving("--max-connections", "1") as full,
        await full.connect() as first,
    ):
        servers = [f"{host}:{port}" for host, port in (healthy.web, hanging.web, full.web)]
        configuration = CONFIGURATION.format(
            recording=DASHBOARDS / "prometheus" / "rules" / "recording.yml",
            alerts=alerts,
            servers=json.dumps(servers),
            exporter=f"{foreign[0]}:{foreign[1]}",
            itself=itself,
        )
        await first.send_all(b"TIME\r\n")
        await first.receive_some()
        async with prometheus(configuration, tmp_path) as server, trio.open_nursery() as clients:
            itself.write_text(json.dumps([{"targets": [f"{server[0]}:{server[1]}"]}]))
            clients.start_soon(use, healthy, full)
            all_ = {"job": ["clocks"], "instance": sorted(servers)}

            async def settled() -> bool:
                jobs = await query(server, 'up{job=~"node|prometheus"} == 1')
                return len(jobs) == 2 and await chosen_by_all(server) == all_

            await eventually(settled, patience=LONG)
            with stopped(hanging):
                await becomes_right(server, RIGHT)
                (seconds,) = await query(server, expression("CPU time per request", all_))
                assert seconds < 1
                worst_first = [f"{each.web[0]}:{each.web[1]}" for each in (hanging, full, healthy)]

                async def sorted_by_trouble() -> bool:
                    found = await series_of(server, expression("Each server", all_, FLEET))
                    found.sort(key=lambda series: -float(series["value"][1]))
                    return [series["metric"]["instance"] for series in found] == worst_first

                await eventually(sorted_by_trouble, patience=LONG)
            clients.cancel_scope.cancel()
            for program in (healthy, hanging, full):
                program.process.kill()
                await program.process.wait()
            await becomes_right(server, DEAD)
            assert await chosen_by_all(server) == all_


async def becomes_right(server: Address, right: Mapping[str, Range]) -> None:
    """Wait until each number of the first row is right."""
    last: dict[str, list[float]] = {}

    async def is_right() -> bool:
        nonlocal last
        last = wrong(await numbers(server, await chosen_by_all(server)), right)
        return not last

    try:
        await eventually(is_right, patience=LONG)
    except trio.TooSlowError:
        raise AssertionError(f"wrong: {last}") from None
