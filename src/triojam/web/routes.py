"""The second listener: Prometheus metrics, health, readiness and the live page, over HTTP.

It knows nothing of the service but what it is handed: a registry, a reason for not being ready, and
the board that the page shows.
"""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources import files
from typing import Any, Protocol

import trio
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = ("GET", "HEAD")

# So many pages may hear of every second at once, within the web listener's connections; others ask for it.
MOST_STREAMS = 16
STREAM_INTERVAL = 1.0


class _Metrics:
    """The client library's metrics app behind a Route; mounted, it would redirect to `/metrics/`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._app = make_asgi_app(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _ReadOnly:
    """Answers 405 to whatever is neither GET nor HEAD, wherever it goes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in METHODS:
            refusal = PlainTextResponse("GET and HEAD only\n", 405, headers={"Allow": ", ".join(METHODS)})
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Board(Protocol):
    """What the live page shows."""

    def snapshot(self) -> dict[str, Any]:
        """Return how things are."""

    def history(self) -> Sequence[Sequence[float]]:
        """Return how they went, a sample a second."""


def make_app(
    *, registry: CollectorRegistry, not_ready: Callable[[], str | None], board: Board, stop: trio.Event
) -> ASGIApp:
    """Build the web application.

    not_ready: why new clients should go elsewhere, or None. stop: ends the streams of events.
    """

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")  # whoever reads this knows that the loop turns

    async def readyz(_: Request) -> Response:
        reason = not_ready()
        if reason is None:
            return PlainTextResponse("ready\n")
        return PlainTextResponse(f"not ready: {reason}\n", status_code=503)

    app = Starlette(
        routes=[
            *_live_routes(board, stop),
            Route("/metrics", _Metrics(registry)),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )
    app.router.redirect_slashes = False  # it would send clients to whatever host they named
    return _ReadOnly(app)


def _live_routes(board: Board, stop: trio.Event) -> list[Route]:
    """Make the routes of the live page: itself, what it shows, and that again every second."""
    page = files("triojam.web").joinpath("page.html").read_text("utf-8")
    policy = _content_security_policy(page)
    streams = 0

    async def live(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})

    def whole() -> dict[str, Any]:
        return board.snapshot() | {"history": board.history()}

    async def status(_: Request) -> Response:
        return JSONResponse(whole(), headers={"Cache-Control": "no-store"})

    async def events(request: Request) -> Response:
        if streams >= MOST_STREAMS:
            return PlainTextResponse("too many pages are open: ask /status\n", status_code=503)
        content = tell() if request.method == "GET" else _nothing()
        return StreamingResponse(
            content, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def tell() -> AsyncIterator[str]:
        nonlocal streams
        streams += 1
        try:
            said = whole()
            while not stop.is_set():
                yield f"data: {json.dumps(said, separators=(',', ':'))}\n\n"
                with trio.move_on_after(STREAM_INTERVAL):
                    await stop.wait()
                said = board.snapshot() | {"sample": board.history()[-1]}
        finally:
            streams -= 1

    return [Route("/", live), Route("/status", status), Route("/events", events)]


async def _nothing() -> AsyncIterator[str]:
    return
    yield


def _content_security_policy(page: str) -> str:
    """Allow the page's own style and script, and requests to where it came from; nothing else."""

    def sources(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {sources('script')}; style-src {sources('style')}"
    )
