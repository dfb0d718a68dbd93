"""The live page in a real browser: its numbers, its updates, and a restart of the server."""

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
LONG = PATIENCE * 1000  # milliseconds
expect.set_options(timeout=LONG)


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser."""
    return require_program("chromium", "chromium")


@contextmanager
def opened(chromium: str, program: Program, *, streams: bool = True, **options: Any) -> Iterator[Page]:
    """Open the page; it must have no errors, and no requests to other servers.

    streams: whether its event stream works. options: of the browser's page.
    """
    address = f"http://127.0.0.1:{program.web[1]}"
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        try:
            page = browser.new_page(**options)
            page.set_default_timeout(LONG)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda said: problems.extend([said.text] * (said.type == "error")))
            ours = (address, "data:")
            page.on("request", lambda asked: problems.extend([asked.url] * (not asked.url.startswith(ours))))
            if not streams:
                page.route("**/events", lambda route: route.abort())
            page.goto(address, wait_until="domcontentloaded")
            expect(page.locator("#link")).to_have_text("live" if streams else "polling")
            yield page
        finally:
            browser.close()
    # The browser also reports failed connections, to a stopped server for example.
    assert [each for each in problems if "net::ERR_" not in each] == []


async def look_at(chromium: str, program: Program, look: Callable[[Page], None], **options: Any) -> None:
    """Open the page, and call `look` with it, in a thread: Playwright cannot run in Trio's."""

    def run() -> None:
        with opened(chromium, program, **options) as page:
            look(page)

    await trio.to_thread.run_sync(run)


def number(page: Page, place: str) -> float:
    """Return a number on the page."""
    return float(page.locator(f"#{place}").inner_text().replace(",", ""))


async def ask(program: Program, request: bytes, times: int) -> None:
    """Send requests one by one."""
    async with await program.connect() as client:
        for _ in range(times):
            await client.send_all(request)
            while not (await client.receive_some()).endswith(b"\n"):
                pass


async def test_the_page_has_the_numbers_of_a_scrape(chromium: str) -> None:
    """Every number on the page agrees with a scrape."""
    async with serving() as program:
        await ask(program, b"TIME\r\n", 30)
        await ask(program, b"HELLO\r\n", 5)

        def look(page: Page) -> None:
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

        await look_at(chromium, program, look)


async def test_the_page_shows_the_served_time(chromium: str) -> None:
    """The time on the page agrees with an answer, and advances."""
    async with serving("--timezone", "Asia/Jakarta") as program:

        def look(page: Page) -> None:
            answer = trio.from_thread.run(one_answer, program)
            first = page.locator("#time").inner_text()
            assert abs(seconds(first) - seconds(answer[4:12].decode())) in (0, 1, 86_399)
            expect(page.locator("#time")).not_to_have_text(first)

        await look_at(chromium, program, look)


async def one_answer(program: Program) -> bytes:
    """Ask for the time once."""
    async with await program.connect() as client:
        await client.send_all(b"TIME\r\n")
        return await receive_exactly(client, 14)


def seconds(text: str) -> int:
    """Return the second of the day."""
    hour, minute, second = map(int, text.split(":"))
    return hour * 3600 + minute * 60 + second


async def test_the_chart_shows_the_load(chromium: str) -> None:
    """Under load the page shows the rate, and the line moves; a page opened later has the history, too."""
    async with serving() as program, trio.open_nursery() as nursery:
        nursery.start_soon(ask, program, b"TIME\r\n", 1_000_000)

        def look(page: Page) -> None:
            line = page.locator("#line_requests")
            expect(page.locator("#requests_rate")).to_have_text(re.compile(r"^[\d,]{2,}$"))
            expect(line).not_to_have_attribute("points", line.get_attribute("points") or "")

        def look_later(page: Page) -> None:
            assert (page.locator("#line_requests").get_attribute("points") or "").count(",") >= 2

        await look_at(chromium, program, look)
        await look_at(chromium, program, look_later)
        nursery.cancel_scope.cancel()


async def test_the_page_shows_a_drain(chromium: str) -> None:
    """The page shows that the server drains, and then that it is not reachable."""
    async with serving("--lame-duck", "3") as program:

        def look(page: Page) -> None:
            program.process.terminate()
            expect(page.locator("#state")).to_have_text("draining")
            expect(page.locator("#state")).to_have_text("not reachable")

        await look_at(chromium, program, look)
        assert await program.ended() == 0


async def test_the_page_continues_after_a_restart(chromium: str) -> None:
    """The page shows that the server is not reachable, and later the numbers of the next process."""
    away, back, seen = trio.Event(), trio.Event(), trio.Event()

    async def look_on(program: Program) -> None:
        def look(page: Page) -> None:
            expect(page.locator("#requests")).to_have_text("20")
            program.process.kill()
            expect(page.locator("#state")).to_have_text("not reachable")
            trio.from_thread.run_sync(away.set)
            trio.from_thread.run(back.wait)
            expect(page.locator("#requests")).to_have_text("3")
            expect(page.locator("#link")).to_have_text("live")

        await look_at(chromium, program, look)
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
async def test_the_page_fits_a_phone_and_its_colours(chromium: str, scheme: str) -> None:
    """On a narrow screen nothing is cut off, and the colours follow the system's light or dark scheme."""

    def look(page: Page) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", paper)[0])
        assert red > 200 if scheme == "light" else red < 60

    async with serving() as program:
        phone = {"width": 360, "height": 740}
        await look_at(chromium, program, look, viewport=phone, color_scheme=scheme)


async def test_the_page_works_with_a_keyboard_and_a_screen_reader(chromium: str) -> None:
    """The Tab key reaches all links and scrollable parts, and all of them have a name."""

    def look(page: Page) -> None:
        reached = []
        for _ in range(5):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent")
            )
        assert reached == ["tree of tasks", "/metrics", "/healthz", "/readyz", "/status"]
        assert page.get_by_role("img", name="requests responses rejected").count() == 1
        assert page.get_by_role("heading", name="triojam").count() == 1
        assert page.get_by_role("rowheader", name="bad_command").count() == 1
        assert page.get_by_role("timer", name="served time").count() == 1

    async with serving() as program:
        await look_at(chromium, program, look)


async def test_the_page_polls_without_event_streams(chromium: str) -> None:
    """A page without an event stream polls /status."""
    async with serving() as program:
        await ask(program, b"TIME\r\n", 7)
        await look_at(
            chromium, program, lambda page: expect(page.locator("#requests")).to_have_text("7"), streams=False
        )


def test_the_page_is_small_and_complete() -> None:
    """The page is smaller than 40 kB, and has no address of another server."""
    page = files("triojam.web").joinpath("page.html").read_bytes()
    assert len(page) < 40_000
    assert b"//" not in page.replace(b"</", b"")
