"""The web application of the second listener: Prometheus metrics, health, readiness and the live page.

All that it knows about the server is a registry, the reason for not being ready, and the live page.
"""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any

import trio
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from triojam.web.live_page import LivePage

METHODS = ("GET", "HEAD")

# Open event streams, at most: fewer than the web listener's connections. Further pages poll /status.
MOST_STREAMS = 16
STREAM_INTERVAL = 1.0


class _Metrics:
    """The client library's metrics app for a Route; mounted, it would redirect to `/metrics/`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._app = make_asgi_app(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _ReadOnly:
    """Answers 405 to every method except GET and HEAD, on every path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in METHODS:
            refusal = PlainTextResponse("GET and HEAD only\n", 405, headers={"Allow": ", ".join(METHODS)})
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def make_app(
    *, registry: CollectorRegistry, not_ready: Callable[[], str | None], board: LivePage, stop: trio.Event
) -> ASGIApp:
    """Build the web application.

    not_ready: returns why the server takes no new clients, or None. stop: ends the event streams.
    """

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")  # an answer proves that the event loop runs

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
    app.router.redirect_slashes = False  # it would redirect to the host in the request
    return _ReadOnly(app)


def _live_routes(board: LivePage, stop: trio.Event) -> list[Route]:
    """Make the routes of the live page: the page, its content, and its content once a second."""
    page = files("triojam.web").joinpath("page.html").read_text("utf-8")
    policy = _content_security_policy(page)
    streams = 0

    async def live(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})

    def content() -> dict[str, Any]:
        return board.snapshot() | {"history": board.history()}

    async def status(_: Request) -> Response:
        return JSONResponse(content(), headers={"Cache-Control": "no-store"})

    async def events(request: Request) -> Response:
        if streams >= MOST_STREAMS:
            return PlainTextResponse("too many pages are open: ask /status\n", status_code=503)
        body = stream() if request.method == "GET" else _nothing()
        return StreamingResponse(body, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def stream() -> AsyncIterator[str]:
        nonlocal streams
        streams += 1
        try:
            data = content()
            while not stop.is_set():
                yield f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
                with trio.move_on_after(STREAM_INTERVAL):
                    await stop.wait()
                data = board.snapshot() | {"sample": board.history()[-1]}
        finally:
            streams -= 1

    return [Route("/", live), Route("/status", status), Route("/events", events)]


async def _nothing() -> AsyncIterator[str]:
    return
    yield


def _content_security_policy(page: str) -> str:
    """Allow the page's own style and script, and requests to its own server; nothing else."""

    def sources(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {sources('script')}; style-src {sources('style')}"
    )
