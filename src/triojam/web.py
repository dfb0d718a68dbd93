"""The second listener: Prometheus metrics, health, readiness and a landing page, over HTTP.

It knows nothing of the service but what it is handed: a registry, a reason for not being ready, and
the totals to show.
"""

from collections.abc import Callable, Mapping
from html import escape

from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = ("GET", "HEAD")

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


def make_app(
    *,
    registry: CollectorRegistry,
    not_ready: Callable[[], str | None],
    totals: Callable[[], Mapping[str, int]],
    version: str,
) -> ASGIApp:
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

    app = Starlette(
        routes=[
            Route("/", landing),
            Route("/metrics", _Metrics(registry)),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )
    app.router.redirect_slashes = False  # it would send clients to whatever host they named
    return _ReadOnly(app)
