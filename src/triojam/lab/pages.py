"""The pages that the lab names: only those that answer. It serves the runbooks itself."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import trio

from triojam.errors import LabError
from triojam.lab.network import Network
from triojam.web.http_connection import Request, Response
from triojam.web.http_server import HttpServer

ANSWER_SECONDS = 5.0
# Prometheus starts to scrape after five to ten seconds.
FIRST_SCRAPE_SECONDS, POLL_SECONDS = 30.0, 0.2
_NO_RESULT = b'"result":[]'
LONGEST_PAGE = 4 * 1024 * 1024
RUNBOOKS = "/runbooks"

# Other versions and builds of Prometheus have their pages elsewhere; Debian's has only /classic.
GRAPHS = ("query", "graph", "classic/graph")
ALERTS = ("alerts", "classic/alerts")
# What Debian's Alertmanager serves in place of its page, with status 200.
_PLACEHOLDER = re.compile(rb"does not include a web\s+application")


class Reply(NamedTuple):
    """An HTTP response. status: 0 if there was none."""

    status: int
    body: bytes = b""


async def get(url: str, seconds: float = ANSWER_SECONDS) -> Reply:
    """Ask for a URL with a host as an IP address, and follow no redirection."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(seconds):
        async with await trio.open_tcp_stream(parts.hostname or "", parts.port or 80) as stream:
            await stream.send_all(f"GET {target} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
            received = bytearray()
            while len(received) < LONGEST_PAGE and (data := await stream.receive_some()):
                received += data
        head, _, body = bytes(received).partition(b"\r\n\r\n")
        if len(words := head.split(maxsplit=2)) > 1 and words[1].isdigit():
            return Reply(int(words[1]), body)
    return Reply(0)


async def first_page(url: str, paths: Sequence[str]) -> str | None:
    """Return the first of these paths below a URL that is a page; None if none is."""
    for path in paths:
        reply = await get(f"{url}{path}")
        if reply.status == HTTPStatus.OK and not _PLACEHOLDER.search(reply.body):
            return path
    return None


async def answering(url: str) -> str:
    """Return a URL, or a text in its place if it does not answer."""
    return url if await first_page(url, [""]) is not None else "does not answer"


class Links:
    """Prometheus's pages of queries and alerts: its API, if this build has no pages.

    first: the page to begin with.
    """

    def __init__(self, first: str, prometheus: str, graph: str | None, alerts: str | None) -> None:
        self.first = first
        self._prometheus = prometheus
        self._graph = graph
        self._alerts = alerts

    @property
    def graphs(self) -> str:
        """Where queries are asked."""
        return _page_or_api(self._prometheus, self._graph, "api/v1/query?query=up")

    @property
    def alerts(self) -> str:
        """Where the alerts stand."""
        return _page_or_api(self._prometheus, self._alerts, "api/v1/alerts")

    def query(self, expression: str) -> str:
        """Return the link of a query."""
        if self._graph is None:
            return f"{self._prometheus}api/v1/query?query={quote(expression, safe='')}"
        return (
            f"{self._prometheus}{self._graph}?g0.range_input=5m&g0.tab=0&g0.expr={quote(expression, safe='')}"
        )


async def find_links(first: str, prometheus: str) -> Links:
    """Find the pages of a Prometheus."""
    graph = await first_page(prometheus, GRAPHS)
    return Links(first, prometheus, graph, await first_page(prometheus, ALERTS))


async def value_of(prometheus: str, labels: Mapping[str, str]) -> str | None:
    """Return the value of the firing alert with these labels; None if Prometheus does not say it."""
    reply = await get(f"{prometheus}api/v1/alerts")
    try:
        alerts = json.loads(reply.body)["data"]["alerts"]
        return next((f"{float(each['value']):.4g}" for each in alerts if each["labels"] == labels), None)
    except (ValueError, LookupError, TypeError):
        return None


async def first_scrape(prometheus: str, targets: int) -> None:
    """Wait until a Prometheus has scraped all its targets: before, it cannot see a fault."""
    url = f"{prometheus}api/v1/query?query={quote(f'count(up) >= {targets}')}"
    with trio.move_on_after(FIRST_SCRAPE_SECONDS):
        while _NO_RESULT in (await get(url)).body:  # noqa: ASYNC110  # another process sets no Event
            await trio.sleep(POLL_SECONDS)


async def alertmanager_page(url: str) -> str:
    """Return where Alertmanager is seen."""
    return _page_or_api(url, await first_page(url, [""]), "api/v2/alerts")


def _page_or_api(url: str, page: str | None, api: str) -> str:
    return f"{url}{api} (JSON: this build has no page)" if page is None else f"{url}{page}"


async def serve_runbooks(text: str, network: Network, *, task_status: trio.TaskStatus[str]) -> None:
    """Serve the runbooks as a page with an anchor for each alert, until cancelled. Reports its URL."""
    page = Response(200, render_runbooks(text).encode(), "text/html; charset=utf-8")

    async def answer(request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return page if request.path in {"/", RUNBOOKS} else Response(404, b"the runbooks are at /runbooks\n")

    try:
        listener = network.listen(network.ports.get("--runbooks-port", 0))
    except OSError as exc:
        raise LabError(f"lab: the runbooks cannot be served: {exc.strerror}") from None
    url = network.url(listener.getsockname()[1]).rstrip("/") + RUNBOOKS
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(HttpServer(answer).serve, [listener], stop=trio.Event()))
        task_status.started(url)


def render_runbooks(text: str) -> str:
    """Return the runbooks as HTML: their headings with anchors, the rest as it was written."""
    escaped = html.escape(text, quote=False)
    body = re.sub(
        r"^## (\w+)$",
        lambda found: f'</pre><h2 id="{found[1].lower()}">{found[1]}</h2><pre>',
        escaped,
        flags=re.MULTILINE,
    )
    style = "<style>body{max-width:60em;margin:auto;padding:1em}pre{white-space:pre-wrap}</style>"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Runbooks</title>{style}'
    return f"{head}<pre>{body}</pre></html>\n"
