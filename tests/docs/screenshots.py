"""Makes pictures of the live page: `python -m tests.docs.screenshots FOLDER`; `docs` for docs/images.

A scene is a real server with real clients. It is photographed in Chromium at each width, light and dark.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import trio
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.helpers.pages import ROOT
from tests.helpers.program import COMMAND, FREE_PORTS, Program, environment, launched, parse_address
from tests.helpers.requirements import require_program

CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Name, width and height. The first two show what is seen without scrolling, a phone everything.
SIZES = (("wall", 1920, 1080), ("desk", 1280, 800), ("phone", 390, 844))
SCHEMES = ("light", "dark")
# The pictures in docs/images: scene, size, scheme.
DOCS = {"page.png": ("load", "desk", "light"), "page-full.png": ("full", "desk", "dark")}
MILLISECONDS = 1000
PATIENCE = 60.0
# The name of this machine, and whether a time service keeps its clock, are not the pictures' subject.
STAGE = """
import socket, sys
import triojam.server
from triojam.__main__ import main
from triojam.web.kernel_clock import KernelClock
socket.gethostname = lambda: "time1"
kept = KernelClock(synchronized=True, max_error=0.004, offset=0.0, leap_state=0)
triojam.server.read_kernel_clock = lambda: kept
sys.exit(main())
"""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A server to be photographed.

    words: of its command line. rates, connections: of the load, one after the other. refused: further clients
    at once, beyond the limit. act: is called when the pages are open. state: the page then begins with it.
    """

    state: str
    words: tuple[str, ...] = ()
    rates: tuple[int, ...] = (600, 900, 1500, 300, 1200)
    connections: int = 60
    refused: int = 0
    act: Callable[[Program], None] = lambda _program: None


SCENES = {
    "idle": Scene(state="ready", rates=(1,), connections=3),
    "load": Scene(state="ready"),
    "full": Scene(state="full", words=("--max-connections", "90"), refused=33),
    "draining": Scene(
        state="draining", words=("--lame-duck", "900"), act=lambda program: program.process.terminate()
    ),
    "gone": Scene(state="no news", act=lambda program: program.process.kill()),
}


class Shot(NamedTuple):
    """One picture of a scene."""

    size: str
    scheme: str
    file: Path


@asynccontextmanager
async def staged(scene: Scene) -> AsyncIterator[Program]:
    """Start the server of a scene and its clients."""
    command = [sys.executable, "-c", STAGE, *FREE_PORTS, "--timezone", "Asia/Jakarta", *scene.words]
    async with launched(command, {}) as process, trio.open_nursery() as nursery:
        program = Program(process)
        addresses = await program.logged("serving")
        program.address = parse_address(addresses["addresses"][0])
        program.web = parse_address(addresses["metrics"][0])
        nursery.start_soon(read_log, program)
        nursery.start_soon(load, program, scene)
        for _ in range(scene.refused):
            nursery.start_soon(knock, program)
        yield program
        nursery.cancel_scope.cancel()


async def read_log(program: Program) -> None:
    """Read the log, so that the server need not drop lines."""
    while await program._entry() is not None:
        pass


async def load(program: Program, scene: Scene) -> None:
    """Send requests, some of them wrong: at the first rate all the time, beside it at the others in turn."""
    base, *bursts = scene.rates
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, program, base, scene.connections, 3600)
        for rate in cycle(bursts):
            await trio.sleep(8)
            await send(program, rate, scene.connections // 2, 24)


async def send(program: Program, rate: int, connections: int, seconds: int) -> None:
    """Send requests at one rate."""
    words = ["load", "{}:{}".format(*program.address), "--rate", str(rate), "--duration", str(seconds)]
    words += ["--connections", str(connections), "--mix", "TIME:96,HELLO:3,split:1"]
    await trio.run_process(
        [*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        env=environment(),
    )  # fmt: skip


async def knock(program: Program) -> None:
    """Connect again and again, and stay if the server admits this client."""
    while True:
        try:
            async with await program.connect() as client:
                while await client.receive_some():
                    pass
        except OSError:
            pass
        await trio.sleep(0.02)


def photograph(program: Program, scene: Scene, shots: Iterable[Shot]) -> None:
    """Open a page for each shot, let the scene act, and take the pictures when the state is there."""
    chromium = require_program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        pages: list[tuple[Page, Shot]] = []
        errors: list[str] = []
        for shot in shots:
            _, width, height = next(size for size in SIZES if size[0] == shot.size)
            options: dict[str, Any] = {
                "viewport": {"width": width, "height": height},
                "color_scheme": shot.scheme,
            }
            page = browser.new_page(**options)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto("http://{}:{}/".format(*program.web))
            expect(page.locator("#requests")).to_contain_text(
                re.compile(r"\d"), timeout=PATIENCE * MILLISECONDS
            )
            pages.append((page, shot))
        scene.act(program)
        for page, shot in pages:
            expect(page.locator("#state")).to_contain_text(scene.state, timeout=PATIENCE * MILLISECONDS)
            page.screenshot(path=shot.file, full_page=shot.size == "phone", animations="disabled")
            Image.open(shot.file).quantize(200).save(shot.file, optimize=True)  # a third of the size
        browser.close()
    assert not errors, errors


async def make(shots: dict[str, list[Shot]], seconds: float) -> None:
    """Take the pictures of each scene; all servers run for some seconds before."""
    async with AsyncExitStack() as stack:
        programs = {name: await stack.enter_async_context(staged(SCENES[name])) for name in shots}
        await trio.sleep(seconds)
        for name, program in programs.items():
            await trio.to_thread.run_sync(photograph, program, SCENES[name], shots[name])


def main() -> None:
    """Read the command line, and make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="for all pictures; docs makes those of docs/images")
    parser.add_argument("--seconds", type=float, default=330.0, help="how long the servers run before")
    parser.add_argument("--scenes", default=",".join(SCENES), help="which, with commas between them")
    given = parser.parse_args()
    shots: dict[str, list[Shot]] = {}
    if given.folder == "docs":
        for file, (scene, size, scheme) in DOCS.items():
            shots.setdefault(scene, []).append(Shot(size, scheme, ROOT / "docs" / "images" / file))
    else:
        folder = Path(given.folder)
        folder.mkdir(parents=True, exist_ok=True)
        for scene in given.scenes.split(","):
            shots[scene] = [
                Shot(size, scheme, folder / f"{scene}-{size}-{scheme}.png")
                for size, *_ in SIZES
                for scheme in SCHEMES
            ]
    trio.run(make, shots, given.seconds)


if __name__ == "__main__":
    main()
