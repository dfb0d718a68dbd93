"""Draws the first row of the overview with Grafana's own components: python -m tests.dashboards.grafana.

It needs Prometheus, Chromium, node and npm, and takes four minutes. The pictures go to dashboards/images.
"""

import json
import re
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import trio
from playwright.sync_api import sync_playwright

from tests.dashboards.content import DASHBOARDS, OVERVIEW, filled, first_row, load
from tests.dashboards.grafana.npm import HERE, beside, install, run
from tests.dashboards.test_prometheus import RULES, prometheus
from tests.dashboards.test_selection import chosen_by_all, stopped
from tests.helpers.program import Program, serving
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Address, fetch
from tests.helpers.servers import receive_all

IMAGES = DASHBOARDS / "images"
SECONDS = 90  # that a picture shows; some alerts wait for a minute
DRAWN = {"stat", "timeseries", "table"}  # the state timeline is not among Grafana's packages
WIDTH, HEIGHT = 1248, 18 * 38
LIMIT = 8  # connections of the server that is full

FLAGS = (
    "--bundle",
    '--define:process.env.NODE_ENV="production"',
    "--jsx=automatic",
    "--loader:.ttf=dataurl",
    "--log-level=error",
)
CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: triojam
    static_configs: [{{targets: {servers}}}]
"""


async def ask(
    program: Program,
    pause: float,
    *,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Ask a server again and again, on one connection; one line of twenty is bad."""
    with trio.CancelScope() as scope:
        async with await program.connect() as client:
            task_status.started(scope)
            while True:
                await client.send_all(b"TIME\r\n" * 19 + b"HELLO\r\n")
                received = b""
                while received.count(b"\r\n") < 20:
                    received += await client.receive_some()
                await trio.sleep(pause)


async def knock(program: Program) -> None:
    """Connect to a full server again and again."""
    while True:
        async with await program.connect() as client:
            await receive_all(client)
        await trio.sleep(0.2)


async def series(
    server: Address, target: dict[str, Any], chosen: dict[str, list[str]]
) -> list[dict[str, object]]:
    """Return the series of a query, as Grafana asks for them."""
    now = int(time.time())
    asked: dict[str, object] = {"query": filled(target["expr"], **chosen)}
    path = "/api/v1/query"
    if target["range"]:
        path += "_range"
        asked |= {"start": now - SECONDS, "end": now, "step": 1}
    reply = await fetch(server, f"{path}?{urlencode(asked)}")
    return [
        {
            "name": named(target["legendFormat"], each["metric"]),
            "labels": each["metric"],
            "points": each.get("values") or [each["value"]],
        }
        for each in json.loads(reply.body)["data"]["result"]
    ]


def named(legend: str, labels: dict[str, str]) -> str:
    """Return the name of a series."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels[found[1]], legend)


async def draw(server: Address, script: Path, name: str) -> None:
    """Draw the first row as it is now."""
    chosen = await chosen_by_all(server)
    drawn = [panel for panel in first_row(load(OVERVIEW)) if panel["type"] in DRAWN]
    for panel in drawn:
        panel["series"] = [
            each for target in panel["targets"] for each in await series(server, target, chosen)
        ]
    now = time.time()
    shown = {"from": now - SECONDS, "to": now, "panels": drawn}
    await trio.to_thread.run_sync(partial(_photograph, shown, script, IMAGES / f"{name}.png"))


def _photograph(shown: dict[str, Any], script: Path, image: Path) -> None:
    with sync_playwright() as playwright:
        chromium = require_program("chromium", "chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        problems: list[object] = []
        page.on("pageerror", lambda error: problems.append(error))  # noqa: PLW0108  # a builtin is refused
        document = script.with_suffix(".html")  # a file: Grafana's code needs a place to store things
        document.write_text('<!DOCTYPE html><meta charset="utf-8"><div id="root"></div>', "utf-8")
        page.goto(document.as_uri())
        page.evaluate("shown => { window.shown = shown; }", shown)
        page.add_style_tag(path=script.with_suffix(".css"))
        page.add_script_tag(path=script)
        page.wait_for_timeout(2000)  # the graphs have an animation
        page.screenshot(path=image)
        browser.close()
    assert not problems, problems


async def main() -> None:
    """Draw servers that work, and the same servers when one hangs and one refuses clients."""
    packages = await trio.to_thread.run_sync(install, "pictures")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "picture.js"
        beside(packages, folder, HERE / "pictures" / "picture.jsx")
        bundler = folder / "node_modules" / ".bin" / "esbuild"
        run(bundler, folder / "picture.jsx", *FLAGS, f"--outfile={script}", folder=folder)
        async with (
            serving() as healthy,
            serving() as hanging,
            serving("--max-connections", str(LIMIT)) as full,
        ):
            servers = json.dumps([f"{host}:{port}" for host, port in (healthy.web, hanging.web, full.web)])
            configuration = CONFIGURATION.format(rules=RULES, servers=servers)
            async with prometheus(configuration, folder) as server, trio.open_nursery() as clients:
                clients.start_soon(ask, healthy, 0.05)
                clients.start_soon(ask, full, 0.1)
                asking = await clients.start(ask, hanging, 0.1)
                await trio.sleep(SECONDS)
                await draw(server, script, "working")
                asking.cancel()
                with stopped(hanging):
                    for _ in range(LIMIT - 1):
                        await clients.start(ask, full, 1)
                    clients.start_soon(knock, full)
                    await trio.sleep(SECONDS)
                    await draw(server, script, "broken")
                    clients.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
