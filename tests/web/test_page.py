"""The live page in a real browser: its numbers are those of /metrics, it moves, and it survives a restart."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import pytest
import trio
from playwright.sync_api import Page, expect, sync_playwright

from tests.helpers.program import Program, serving
from tests.helpers.requirements import require_program
from tests.helpers.servers import PATIENCE, receive_exactly

CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = pytest.mark.xdist_group("browser")

LONG = PATIENCE * 1000  # milliseconds
expect.set_options(timeout=LONG)


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser."""
    return require_program("chromium", "chromium")


@contextmanager
def opened(chromium: str, program: Program, **options: Any) -> Iterator[Page]:
    """Open the page; afterwards nothing has gone wrong in it, and nothing has come from elsewhere."""
    address = f"http://127.0.0.1:{program.web[1]}"
    troubles: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        try:
            page = browser.new_page(**options)
            page.set_default_timeout(LONG)
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.on("console", lambda said: troubles.extend([said.text] * (said.type == "error")))
            ours = (address, "data:")
            page.on("request", lambda asked: troubles.extend([asked.url] * (not asked.url.startswith(ours))))
            page.goto(address, wait_until="domcontentloaded")
            expect(page.locator("#link")).to_have_text("live")
            yield page
        finally:
            browser.close()
    # That a server is away is no trouble of the page's, but the browser notes it.
    assert [each for each in troubles if "net::ERR_" not in each] == []


async def in_browser(look: Callable[[], None]) -> None:
    """Run what drives the browser, which must have a thread of its own."""
    await trio.to_thread.run_sync(look)


def number(page: Page, place: str) -> float:
    """Return a number that the page shows."""
    return float(page.locator(f"#{place}").inner_text().replace(",", ""))


async def ask(program: Program, request: bytes, times: int) -> None:
    """Send requests one by one."""
    async with await program.connect() as client:
        for _ in range(times):
            await client.send_all(request)
            while not (await client.receive_some()).endswith(b"\n"):
                pass


async def test_numbers_are_those_of_the_metrics(chromium: str) -> None:
    """Every number on the page is the one that a scrape shows."""
    async with serving() as program:
        await ask(program, b"TIME\r\n", 30)
        await ask(program, b"HELLO\r\n", 5)

        def look() -> None:
            with opened(chromium, program) as page:
                expect(page.locator("#requests")).to_have_text("35")
                seen = trio.from_thread.run(program.scrape)
                for place, name in (
                    ("requests", "triojam_requests_total"),
                    ("responses", "triojam_responses_total"),
                    ("rejected", "triojam_rejected_total"),
                    ("send_errors", "triojam_response_send_errors_total"),
                    ("connections", "triojam_connections_open"),
                    ("connections_limit", "triojam_connections_limit"),
                    ("clock_steps", "triojam_clock_steps_total"),
                ):
                    assert number(page, place) == seen.total(name)
                assert number(page, "in_flight") == seen.unaccounted == 0
                for place, name in (
                    ("rejected_by_reason", "triojam_rejected_total"),
                    ("disconnects_by_reason", "triojam_disconnects_total"),
                ):
                    shown = dict(row.inner_text().split() for row in page.locator(f"#{place} tr").all())
                    scraped = {s.labels["reason"]: s.value for s in seen.samples if s.name == name}
                    assert {reason: float(text) for reason, text in shown.items()} == scraped
                expect(page.locator("#state")).to_have_text("ready")
                assert re.fullmatch(r"[\d.]+ [µm]s", page.locator("#p99").inner_text())
                assert "serve_listeners" in page.locator("#tasks").inner_text()

        await in_browser(look)


async def test_the_clock_ticks_and_is_the_served_one(chromium: str) -> None:
    """The time on the page is the one that is answered, and goes on."""
    async with serving("--timezone", "Asia/Jakarta") as program:

        def look() -> None:
            with opened(chromium, program) as page:
                said = trio.from_thread.run(one_answer, program)
                first = page.locator("#time").inner_text()
                assert abs(seconds(first) - seconds(said[4:12].decode())) in (0, 1, 86_399)
                expect(page.locator("#time")).not_to_have_text(first)

        await in_browser(look)


async def one_answer(program: Program) -> bytes:
    """Ask once."""
    async with await program.connect() as client:
        await client.send_all(b"TIME\r\n")
        return await receive_exactly(client, 14)


def seconds(text: str) -> int:
    """Return the second of the day."""
    hour, minute, second = map(int, text.split(":"))
    return hour * 3600 + minute * 60 + second


async def test_the_chart_moves_under_load(chromium: str) -> None:
    """Under load the rate is shown and the line moves; a page that is opened later has the past, too."""
    async with serving() as program, trio.open_nursery() as nursery:
        nursery.start_soon(ask, program, b"TIME\r\n", 1_000_000)

        def look() -> None:
            with opened(chromium, program) as page:
                line = page.locator("#line_requests")
                expect(page.locator("#requests_rate")).to_have_text(re.compile(r"^[\d,]{2,}$"))
                expect(line).not_to_have_attribute("points", line.get_attribute("points") or "")
            with opened(chromium, program) as page:
                assert (page.locator("#line_requests").get_attribute("points") or "").count(",") >= 2

        await in_browser(look)
        nursery.cancel_scope.cancel()


async def test_a_drain_is_shown(chromium: str) -> None:
    """A server that stops says so on the page while it does."""
    async with serving("--lame-duck", "3") as program:

        def look() -> None:
            with opened(chromium, program) as page:
                program.process.terminate()
                expect(page.locator("#state")).to_have_text("draining")
                expect(page.locator("#state")).to_have_text("away")

        await in_browser(look)
        assert await program.ended() == 0


async def test_a_restart_is_survived(chromium: str) -> None:
    """While the server is away the page says so; it goes on with the next one's numbers by itself."""
    away, back, seen = trio.Event(), trio.Event(), trio.Event()

    async def look_on(program: Program) -> None:
        def look() -> None:
            with opened(chromium, program) as page:
                expect(page.locator("#requests")).to_have_text("20")
                program.process.kill()
                expect(page.locator("#state")).to_have_text("away")
                trio.from_thread.run_sync(away.set)
                trio.from_thread.run(back.wait)
                expect(page.locator("#requests")).to_have_text("3")
                expect(page.locator("#link")).to_have_text("live")

        await in_browser(look)
        seen.set()

    async with serving() as first, trio.open_nursery() as nursery:
        ports = ("--host", "127.0.0.1", "--port", str(first.address[1]), "--metrics-port", str(first.web[1]))
        await ask(first, b"TIME\r\n", 20)
        nursery.start_soon(look_on, first)
        await away.wait()
        async with serving(ports=ports) as second:
            await ask(second, b"TIME\r\n", 3)
            back.set()
            await seen.wait()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone_in_the_dark(chromium: str, scheme: str) -> None:
    """On a narrow screen nothing is cut off, and the colours are those that the system asks for."""
    async with serving() as program:

        def look() -> None:
            narrow = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
            with opened(chromium, program, **narrow) as page:
                assert page.evaluate("document.documentElement.scrollWidth") <= 360
                paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
                red = int(re.findall(r"\d+", paper)[0])
                assert red > 200 if scheme == "light" else red < 60

        await in_browser(look)


async def test_without_a_pointer(chromium: str) -> None:
    """All that can be followed or scrolled is reached with the Tab key, and has a name to be read out."""
    async with serving() as program:

        def look() -> None:
            with opened(chromium, program) as page:
                reached = []
                for _ in range(5):
                    page.keyboard.press("Tab")
                    reached.append(
                        page.evaluate(
                            "document.activeElement.ariaLabel || document.activeElement.textContent"
                        )
                    )
                assert reached == ["tree of tasks", "/metrics", "/healthz", "/readyz", "/status"]
                assert page.get_by_role("img", name="requests responses rejected").count() == 1
                assert page.get_by_role("heading", name="triojam").count() == 1
                assert page.get_by_role("rowheader", name="bad_command").count() == 1
                assert page.get_by_role("timer", name="the time that is served").count() == 1

        await in_browser(look)


async def test_without_event_streams(chromium: str) -> None:
    """A page that cannot have a stream of events asks again and again instead."""
    async with serving() as program:
        await ask(program, b"TIME\r\n", 7)

        def look() -> None:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
                page = browser.new_page()
                page.route("**/events", lambda route: route.abort())
                page.goto(f"http://127.0.0.1:{program.web[1]}", wait_until="domcontentloaded")
                expect(page.locator("#link")).to_have_text("polling")
                expect(page.locator("#requests")).to_have_text("7")
                browser.close()

        await in_browser(look)


def test_it_is_small_and_whole() -> None:
    """The page is below 40 kB, and names no other place on the network."""
    page = files("triojam.web").joinpath("page.html").read_bytes()
    assert len(page) < 40_000
    assert b"//" not in page.replace(b"</", b"")
