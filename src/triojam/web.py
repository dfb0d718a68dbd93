"""The second listener: Prometheus metrics, health, readiness and a landing page, over HTTP.

It knows nothing of the service but what it is handed: a registry, a reason for not being ready, and
the totals to show.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as hypercorn_serve
from hypercorn.typing import ASGIFramework
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

# A scrape takes milliseconds; whoever takes longer than this to fetch a page does not hold up the exit.
GRACEFUL_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 75.0  # longer than the usual scrape intervals, so that a scraper reuses its connection
LARGEST_HEADERS = 16 * 1024

_LANDING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>triojam</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 40rem; padding: 0 1rem }}
td, th {{ padding: .1rem 1.5rem .1rem 0; text-align: left; font-weight: normal }}
td {{ text-align: right; font-variant-numeric: tabular-nums }}</style></head>
<body><h1>triojam {version}</h1>
<p>A time server: <code>TIME</code> in, <code>JAM hh:mm:ss</code> out. It is {state}.</p>
<table>{rows}</table>
<p><a href="/metrics">/metrics</a> · <a href="/healthz">/healthz</a> · <a href="/readyz">/readyz</a></p>
</body></html>
"""


class _Metrics:
    """The client library's metrics app behind a Route; mounted, it would redirect to `/metrics/`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._app = make_asgi_app(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def make_app(
    *,
    registry: CollectorRegistry,
    not_ready: Callable[[], str | None],
    totals: Callable[[], Mapping[str, int]],
    version: str,
) -> Starlette:
    """Build the web application.

    not_ready: why new clients should go elsewhere, or None.
    totals: what the landing page shows, by name.
    """

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")  # whoever reads this knows that the loop turns

    async def readyz(_: Request) -> Response:
        reason = not_ready()
        if reason is None:
            return PlainTextResponse("ready\n")
        return PlainTextResponse(f"not ready: {reason}\n", status_code=503)

    async def landing(_: Request) -> Response:
        rows = "".join(
            f"<tr><th scope=row>{escape(name)}</th><td>{value:,}</td></tr>"
            for name, value in totals().items()
        )
        state = not_ready() or "ready"
        return HTMLResponse(_LANDING.format(version=escape(version), state=state, rows=rows))

    methods = ["GET", "HEAD"]
    return Starlette(
        routes=[
            Route("/", landing, methods=methods),
            Route("/metrics", _Metrics(registry), methods=methods),
            Route("/healthz", healthz, methods=methods),
            Route("/readyz", readyz, methods=methods),
        ]
    )


async def serve(
    app: Starlette,
    sockets: Sequence[trio.socket.SocketType],
    *,
    stop: trio.Event,
    error_log: logging.Logger,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on listening sockets, which it takes over, until `stop` is set.

    Reports once it accepts. An exception in the app answers 500 and goes to `error_log`.
    """
    config = Config()
    config.bind = [f"fd://{sock.detach()}" for sock in sockets]
    config.errorlog = error_log
    config.graceful_timeout = GRACEFUL_SECONDS
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.h11_max_incomplete_size = LARGEST_HEADERS
    config.include_server_header = False
    # Starlette and Hypercorn describe the same ASGI callable in types of their own.
    await hypercorn_serve(
        cast(ASGIFramework, app), config, shutdown_trigger=stop.wait, mode="asgi", task_status=task_status
    )
