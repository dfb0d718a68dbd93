"""The live page in a real browser, with servers that are fine, full, hung, away or behind a proxy."""

import datetime as dt
import http.client
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from playwright.sync_api import Page, expect, sync_playwright

from tests.docs.screenshots import CHROMIUM_FLAGS, DOCS
from tests.helpers.pages import ROOT
from tests.helpers.program import Program, serving
from tests.helpers.requirements import require_program
from tests.helpers.scrape import Address, fetch
from tests.helpers.servers import PATIENCE, receive_all, receive_exactly
from tests.web.test_passwords import hashed
from triojam.core.protocol import REFUSALS
from triojam.core.reasons import Refusal

DASH = "\u2013"
PASSWORD = re.compile(r"(?<=://)[^/@]+@")  # in a URL
LONG = PATIENCE * 1000  # milliseconds
expect.set_options(timeout=LONG)
# Whether a canvas has more than a few shades. The page's policy forbids Playwright's own wait_for_function.
DRAWN = """c => {
  const pixels = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  return new Set(pixels).size > 8;
}"""
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", {get: () => hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser."""
    return require_program("chromium", "chromium")


@contextmanager
def opened(
    chromium: str,
    program: Program,
    *,
    address: str = "",
    number: int = 1,
    clock: bool = False,
    **options: Any,
) -> Iterator[list[Page]]:
    """Open the page in tabs; they must have no errors, and no requests to other servers.

    address: of the page, if it is not the server's own. number: of tabs. clock: whether the page's clock is
    that of the test. options: of the browser's context.
    """
    address = address or f"http://127.0.0.1:{program.web[1]}/"
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        try:
            context = browser.new_context(**options)
            context.set_default_timeout(LONG)
            pages = [context.new_page() for _ in range(number)]
            for page in pages:
                if clock:
                    page.clock.install()
                page.on("pageerror", lambda error: problems.append(str(error)))
                page.on("console", lambda said: problems.extend([said.text] * (said.type == "error")))
                page.on(
                    "request",
                    lambda asked: problems.extend(
                        [asked.url] * (not PASSWORD.sub("", asked.url).startswith((address, "data:")))
                    ),
                )
                page.goto(address, wait_until="domcontentloaded")
            for page in pages:
                expect(page.locator("#time")).to_have_text(re.compile(r"\d\d:\d\d:\d\d"))
            yield pages
        finally:
            browser.close()
    # The browser also reports failed connections, to a stopped server for example.
    assert [each for each in problems if "net::ERR_" not in each] == []


async def look_at(chromium: str, program: Program, look: Callable[..., None], **options: Any) -> None:
    """Open the page, and call `look` with it, in a thread: Playwright cannot run in Trio's."""

    def run() -> None:
        with opened(chromium, program, **options) as pages:
            look(*pages)

    await trio.to_thread.run_sync(run)


async def keep_asking(program: Program) -> None:
    """Send some requests a second, until cancelled."""
    while True:
        await ask(program, b"TIME\r\n", 1)
        await trio.sleep(0.1)


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


def is_grey(page: Page) -> bool:
    """Whether the figures have lost their colours and their contrast."""
    style = page.evaluate(
        "(s => [s.filter, Number(s.opacity)])(getComputedStyle(document.querySelector('main')))"
    )
    return bool(style[0] == "grayscale(1)" and style[1] < 0.5)


def icon(page: Page) -> str:
    """Return the picture of the tab."""
    return page.locator("#icon").get_attribute("href") or ""


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
                ("i_requests", "triojam_requests_total"),
                ("i_responses", "triojam_responses_total"),
                ("i_rejected", "triojam_rejected_total"),
                ("rejected", "triojam_rejected_total"),
                ("refused", "triojam_connections_rejected_total"),
                ("i_send_errors", "triojam_response_send_errors_total"),
                ("connections", "triojam_connections_open"),
                ("connections_limit", "triojam_connections_limit"),
            ):
                assert number(page, place) == seen.total(name), place
            assert number(page, "i_in_flight") == seen.unaccounted == 0
            expect(page.locator("#p99")).to_have_text(re.compile(r"^[\d.]+ [µm]s$"))
            expect(page.locator("#success")).to_have_text("100 %")
            expect(page.locator("#about")).to_contain_text(f"process {program.process.pid}, up ")
            expect(page.locator("#facts")).to_contain_text(f"127.0.0.1:{program.address[1]}")

        await look_at(chromium, program, look)


async def test_the_time_is_never_ahead_of_an_answer(chromium: str) -> None:
    """The time on the page is that of its zone; an answer that comes after a look at it is never earlier."""
    async with serving("--timezone", "Asia/Jakarta") as program:

        def look(page: Page) -> None:
            expect(page.locator("#zone")).to_have_text("Asia/Jakarta, UTC+07:00")
            for _ in range(4):
                shown = page.locator("#time").inner_text()
                answer = trio.from_thread.run(one_answer, program)[4:12].decode()
                assert (seconds(answer) - seconds(shown)) % 86_400 <= PATIENCE
                expect(page.locator("#time")).not_to_have_text(shown)

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


async def test_the_page_greys_while_the_server_hangs(chromium: str) -> None:
    """While the process stands still, the clock does, too, and all is grey; then it comes back by itself."""
    async with serving() as program:

        def look(page: Page) -> None:
            program.process.send_signal(signal.SIGSTOP)
            expect(page.locator("#state")).to_have_text(re.compile(r"^no news since \d\d:\d\d:\d\d$"))
            expect(page.locator("#link")).to_have_text("the server does not answer; trying again")
            expect(page.locator("main")).to_have_css("opacity", "0.38")
            stopped = page.locator("#time").inner_text()
            assert page.locator("#state").inner_text() == f"no news since {stopped}"
            assert page.title().startswith("○ triojam ")
            assert page.title().endswith(f" {DASH} no news since {stopped}")
            assert is_grey(page)
            assert "7a8691" in icon(page)
            program.process.send_signal(signal.SIGCONT)
            expect(page.locator("#time")).not_to_have_text(stopped)
            expect(page.locator("#state")).not_to_contain_text("no news")
            expect(page.locator("#link")).to_have_text("")
            expect(page.locator("main")).to_have_css("opacity", "1")

        await look_at(chromium, program, look)


async def test_the_page_shows_a_drain_and_an_end(chromium: str) -> None:
    """The page shows that the server drains, and then that it is not reachable."""
    async with serving("--lame-duck", "3") as program:

        def look(page: Page) -> None:
            program.process.terminate()
            expect(page.locator("#state")).to_contain_text("draining")
            assert "draining" in page.title().partition(DASH)[2]
            expect(page.locator("#state")).to_contain_text("no news since")
            expect(page.locator("#link")).to_have_text("the server is not reachable; trying again")

        await look_at(chromium, program, look)
        assert await program.ended() == 0


async def test_the_page_continues_after_a_restart(chromium: str) -> None:
    """After a kill the page has the numbers, the history and the name of the next process, by itself."""
    away, back, seen = trio.Event(), trio.Event(), trio.Event()

    async def look_on(program: Program) -> None:
        def look(page: Page) -> None:
            expect(page.locator("#requests")).to_have_text("20")
            program.process.kill()
            expect(page.locator("#state")).to_contain_text("no news since")
            trio.from_thread.run_sync(away.set)
            trio.from_thread.run(back.wait)
            expect(page.locator("#requests")).to_have_text("3")
            expect(page.locator("#about")).not_to_contain_text(f"process {program.process.pid},")
            expect(page.locator("#state")).to_contain_text("ready")
            expect(page.locator("main")).to_have_css("opacity", "1")

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


async def test_the_page_says_that_another_program_answers(chromium: str) -> None:
    """When a login page or another program answers for the server, the page says so, and asks again."""
    async with serving() as program:

        def look(page: Page) -> None:
            for body in ("<html>please log in</html>", "{}"):
                page.route("**/status*", lambda route, _request, body=body: route.fulfill(body=body))
                expect(page.locator("#state")).to_contain_text("no news since")
                expect(page.locator("#link")).to_have_text("another program answers; trying again")
                page.unroute("**/status*")
                expect(page.locator("#state")).to_contain_text("ready")

        await look_at(chromium, program, look)


async def test_a_full_server_is_red(chromium: str) -> None:
    """At the limit the state says full, in red, with the number of refused clients beside the words."""
    async with serving("--max-connections", "2") as program, await program.connect(), await program.connect():

        async def knock() -> None:
            async with await program.connect() as client:
                assert await receive_all(client) == REFUSALS[Refusal.BUSY]

        def look(page: Page) -> None:
            expect(page.locator("#state")).to_have_class("wrong")
            for _ in range(3):
                trio.from_thread.run(knock)
            expect(page.locator("#state")).to_contain_text("full")
            expect(page.locator("#problems")).to_contain_text("2 of 2 connections are open")
            expect(page.locator("#problems")).to_contain_text("3 clients refused in the last")
            expect(page.locator("#refused")).to_have_text("3")
            for part, word in (("connections", "full"), ("refused", "refusing")):
                card = page.locator(f"#cards [data-part={part}]")
                expect(card).to_have_class(re.compile("wrong"))
                expect(card.locator("dt")).to_have_attribute("data-word", word)
            expect(page.locator("#refused_by_reason")).to_contain_text("busy")
            assert f" {DASH} full" in page.title()
            assert "d64045" in icon(page)

        await look_at(chromium, program, look)


async def test_an_ended_certificate_is_red(chromium: str, tmp_path: Path) -> None:
    """A certificate that has ended is named, with its date, on a page that is served with it."""
    file = tmp_path / "c.pem"
    ended = dt.datetime(2024, 5, 6, 7, 8, tzinfo=dt.UTC)
    issued = trustme.CA().issue_cert(
        "localhost", "127.0.0.1", not_before=dt.datetime(2020, 1, 1, tzinfo=dt.UTC), not_after=ended
    )
    file.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    async with serving("--tls-port", "0", "--tls-certificate", str(file)) as program:

        def look(page: Page) -> None:
            expect(page.locator("#state")).to_contain_text("time certificate ended")
            expect(page.locator("#state")).to_have_class("wrong")
            fact = page.locator("#facts > div", has_text="certificate: time")
            expect(fact).to_contain_text("until 2024-05-06 07:08 UTC")
            expect(fact).to_have_class("wrong")

        await look_at(chromium, program, look)


async def test_tabs_of_several_servers_differ(chromium: str) -> None:
    """The title of a tab names the server and its state."""
    async with serving() as one, serving() as other:
        titles = set()

        def look(page: Page) -> None:
            expect(page).to_have_title(re.compile(rf"^● triojam .+:\d+ {DASH} ready"))
            titles.add(page.title())

        await look_at(chromium, one, look)
        await look_at(chromium, other, look)
        assert {re.findall(rf":(\d+) {DASH}", title)[0] for title in titles} == {
            str(one.address[1]),
            str(other.address[1]),
        }


async def test_ten_tabs_have_news(chromium: str) -> None:
    """A browser has six connections for a host; ten tabs of one server all go on."""

    def look(*pages: Page) -> None:
        shown = [page.locator("#time").inner_text() for page in pages]
        for page, before in zip(pages, shown, strict=True):
            expect(page.locator("#time")).not_to_have_text(before)

    async with serving() as program:
        await look_at(chromium, program, look, number=10)


@contextmanager
def proxy(target: Address, prefix: str) -> Iterator[str]:
    """Run a reverse proxy that has the server below a path; yield the address of the page there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(prefix):
                self.send_error(404)
                return
            with closing(http.client.HTTPConnection(*target, timeout=PATIENCE)) as server:
                server.request("GET", "/" + self.path.removeprefix(prefix))
                answer = server.getresponse()
                body = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Security-Policy", "Cache-Control"):
                self.send_header(name, answer.headers.get(name, "no-store"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}{prefix}"
        server.shutdown()


async def test_the_page_works_below_a_path(chromium: str) -> None:
    """Behind a proxy that has the server at /watch/time/, the page has news and its links lead there."""
    async with serving() as program:
        with proxy(program.web, "/watch/time/") as address:

            def look(page: Page) -> None:
                before = page.locator("#time").inner_text()
                expect(page.locator("#time")).not_to_have_text(before)
                links = page.locator("footer a")
                assert [link.evaluate("a => a.href") for link in links.all()] == [
                    f"{address}{name}" for name in ("metrics", "healthz", "readyz", "status")
                ]

            await look_at(chromium, program, look, address=address)


async def test_the_page_works_with_password_and_tls(chromium: str, tmp_path: Path) -> None:
    """With metrics_passwords and metrics_tls, a browser gets news; the password may be in the address."""
    pem, users = tmp_path / "c.pem", tmp_path / "users"
    pem.write_bytes(trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes())
    users.write_text(f"alice:{hashed('secret')}\n")
    words = ["--metrics-tls", "--tls-certificate", str(pem), "--metrics-passwords", str(users)]
    async with serving(*words) as program:

        def look(page: Page) -> None:
            for prefix in ("", "alice:secret@"):
                page.goto(f"https://{prefix}127.0.0.1:{program.web[1]}/")
                expect(page.locator("#time")).to_have_text(re.compile(r"\d\d:\d\d:\d\d"))
                before = page.locator("#time").inner_text()
                expect(page.locator("#time")).not_to_have_text(before)

        await look_at(
            chromium, program, look, address=f"https://127.0.0.1:{program.web[1]}/", ignore_https_errors=True,
            http_credentials={"username": "alice", "password": "secret"},
        )  # fmt: skip
        program.process.terminate()  # a scrape without password could not tell whether the accounts balance
        assert await program.ended() == 0


async def test_updates_leave_what_is_unchanged(chromium: str) -> None:
    """While numbers change, a selection stays, and so do the rows: a screen reader keeps its place."""
    async with serving() as program, trio.open_nursery() as nursery:
        await ask(program, b"HELLO\r\n", 3)

        def look(page: Page) -> None:
            expect(page.locator("#rejected_by_reason td")).to_have_text("3")
            nursery_start()
            page.evaluate("getSelection().selectAllChildren(document.querySelector('#facts dd'))")
            page.evaluate(
                "kept = [...document.querySelectorAll('#rejected_by_reason *, #facts *, #cards *, #tasks *')]"
            )
            selected = page.evaluate("String(getSelection())")
            assert selected == f"127.0.0.1:{program.address[1]}"
            for _ in range(3):
                total = page.locator("#requests").inner_text()
                expect(page.locator("#requests")).not_to_have_text(total)
            assert page.evaluate("String(getSelection())") == selected
            assert page.evaluate("kept.every(node => node.isConnected)")
            assert page.locator("[aria-live], [role=status], [role=alert], [role=log]").count() == 1

        def nursery_start() -> None:
            trio.from_thread.run_sync(nursery.start_soon, keep_asking, program)

        await look_at(chromium, program, look)
        nursery.cancel_scope.cancel()


async def test_reasons_are_sorted_and_zeros_are_folded(chromium: str) -> None:
    """The most frequent reason is first; reasons without a number are folded away, but can be opened."""
    async with serving() as program:
        await ask(program, b"TIME\n", 2)
        await ask(program, b"HELLO\r\n", 5)

        def look(page: Page) -> None:
            section = page.locator("#rejected_by_reason")
            expect(section.locator("tr")).to_have_text(["bad_command5", "bad_terminator2"])
            folded = section.locator("details")
            expect(folded.locator("summary")).to_have_text("5 at zero")
            expect(folded.locator("p")).to_be_hidden()
            folded.locator("summary").click()
            expect(folded.locator("p")).to_be_visible()
            expect(folded.locator("p")).to_contain_text("rate_limited")
            expect(page.locator("#refused_by_reason")).to_have_count(0)
            expect(page.locator("#none")).to_contain_text("refused connections")
            trio.from_thread.run(ask, program, b"TIME\n", 4)
            expect(section.locator("tr")).to_have_text(["bad_terminator6", "bad_command5"])
            expect(folded.locator("p")).to_be_visible()

        await look_at(chromium, program, look)


async def test_the_tree_has_taught_names(chromium: str) -> None:
    """Opened, the tree shows tasks by names that teach, and their number."""

    def look(page: Page) -> None:
        expect(page.locator("#tasks")).to_be_hidden()
        page.locator("#tree summary").click()
        for words in ("connection \u00d7 2", "probe: event loop lag", "nursery: clients"):
            expect(page.locator("#tasks").get_by_text(words, exact=True)).to_be_visible()
        assert not re.search(r"\b_|triojam\.|<", page.locator("#tasks").inner_text())

    async with serving("--no-fast-lane") as program, await program.connect(), await program.connect():
        await look_at(chromium, program, look)


async def test_the_charts_are_drawn(chromium: str) -> None:
    """Each chart has pixels, its values in words, and the time under the pointer."""
    async with serving() as program:
        await ask(program, b"TIME\r\n", 50)
        await ask(program, b"HELLO\r\n", 3)

        def look(page: Page) -> None:
            for name in ("answered", "failed", "times", "connections"):
                canvas = page.locator(f"#chart_{name} canvas")
                expect(canvas).to_be_visible()
                until = time.monotonic() + PATIENCE
                while not canvas.evaluate(DRAWN):
                    assert time.monotonic() < until
                    page.wait_for_timeout(50)
            keys = page.locator("figcaption .key").all_inner_texts()
            assert [re.sub(rf" [\d{DASH}].*", "", each.strip()) for each in keys] == [
                "answered", "rejected", "refused", "send errors", "p99", "p50", "loop lag", "open", "limit",
            ]  # fmt: skip
            box = page.locator("#chart_answered .u-over").bounding_box()
            assert box is not None
            page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 20)
            for caption in page.locator("figcaption").all():
                expect(caption).to_contain_text(re.compile(r"at \d\d:\d\d:\d\d"))

        await look_at(chromium, program, look)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390])
async def test_the_page_fits_a_phone_and_its_colours(chromium: str, scheme: str, width: int) -> None:
    """On a narrow screen nothing is cut off, and the colours follow the system's light or dark scheme."""

    def look(page: Page) -> None:
        page.locator("#tree summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", paper)[0])
        assert red > 200 if scheme == "light" else red < 60

    async with serving() as program:
        await look_at(chromium, program, look, viewport={"width": width, "height": 740}, color_scheme=scheme)


async def test_the_page_works_with_a_keyboard_and_a_screen_reader(chromium: str) -> None:
    """The Tab key reaches all that opens and all links, and everything has a name."""

    def look(page: Page) -> None:
        reached = []
        for _ in range(8):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.textContent"))
        assert [each.partition(" ")[2] for each in reached[:2]] == ["at zero"] * 2
        assert reached[2].startswith("nothing: ")
        assert reached[3:] == ["Running tasks and their nurseries", "metrics", "healthz", "readyz", "status"]
        for name in ("answered requests per second", "event loop lag", "open connections"):
            assert page.get_by_role("img", name=name).count() == 1
        assert page.get_by_role("heading", name="triojam").count() == 1
        assert page.get_by_role("rowheader", name="bad_command").count() == 1
        assert page.get_by_role("timer", name="served time").count() == 1
        assert page.get_by_role("meter", name="connections used").count() == 1
        assert page.get_by_role("list", name="what is wrong").count() == 1

    # The client stays, so that only a rejection and a hand-over are counted.
    async with serving() as program, await program.connect() as client:
        await client.send_all(b"HELLO\r\n")
        await client.receive_some()
        await look_at(chromium, program, look)


async def test_a_hidden_tab_asks_seldom(chromium: str) -> None:
    """A tab that is not seen asks each ten seconds, says when that was, and asks at once when it is seen."""
    async with serving() as program:

        def look(page: Page) -> None:
            asked: list[str] = []
            answered: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.on("requestfinished", lambda request: answered.append(request.url))
            page.evaluate(HIDE, arg=True)
            page.clock.run_for(2000)  # the poll that was due
            for _ in range(3000):  # the page's clock must not run ahead of its answer
                if len(answered) == len(asked):
                    break
                page.wait_for_timeout(10)
            expect(page).to_have_title(re.compile(r" at \d\d:\d\d:\d\d$"))
            before = len(asked)
            page.clock.run_for(7000)
            assert len(asked) == before
            assert "no news" not in page.title()
            page.evaluate(HIDE, arg=False)
            with page.expect_response("**/status**"):
                pass
            assert " at " not in page.title()

        await look_at(chromium, program, look, clock=True)


async def test_the_page_loads_little(chromium: str) -> None:
    """All that the page loads before its first poll has less than 100 kB."""
    async with serving() as program:
        whole = await fetch(program.web, "/")
        assert 10_000 < len(whole.body) < 100_000

        def look(page: Page) -> None:
            loaded = page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
            assert all("/status" in each for each in loaded)

        await look_at(chromium, program, look)


def test_the_pictures_are_those_of_the_command() -> None:
    """Each picture of the page in docs/images is made by tests.docs.screenshots, and is small."""
    pictures = {each.name: each.stat().st_size for each in (ROOT / "docs" / "images").glob("*.png")}
    assert pictures.keys() == DOCS.keys()
    assert max(pictures.values()) < 150_000
