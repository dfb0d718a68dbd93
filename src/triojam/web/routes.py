"""What the metrics port answers: metrics, health, readiness and the live page.

All that it knows about the server is a registry, the reason for not being ready, and the live page.
"""

import gzip
import json
import math
import re
import socket
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from triojam.web.http_connection import Request, Response
from triojam.web.page import document
from triojam.web.page.live_page import LivePage

METHODS = ("GET", "HEAD")


class Routes:
    """Answers requests.

    not_ready: returns why the server takes no new clients, or None.
    names: host names that may stand in a request beside IP addresses and localhost, in lower case.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        not_ready: Callable[[], str | None],
        page: LivePage,
        names: Collection[str] = (),
    ) -> None:
        self._registry = registry
        self._not_ready = not_ready
        self._page = page
        self._names = {"localhost", *names}
        self._document = document.load()
        self._routes: dict[str, Callable[[Request], Response]] = {
            "/": self._live,
            "/healthz": lambda _: _text("ok"),  # an answer proves that the event loop runs
            "/metrics": self._metrics,
            "/readyz": self._readyz,
            "/status": self._status,
        }

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        await trio.lowlevel.checkpoint()
        if not self._may_be_named(request.host):
            return _text("this host has another name: see the setting metrics_names", 421)
        if request.method not in METHODS:
            return _text("GET and HEAD only", 405, {"Allow": ", ".join(METHODS)})
        route = self._routes.get(request.path)
        return route(request) if route is not None else _text("no such page", 404)

    def _may_be_named(self, host: str | None) -> bool:
        """Whether a request may name this host: by DNS rebinding, a page in a browser uses another name."""
        if host is None:  # HTTP/1.0; browsers name a host
            return True
        name = re.sub(r":\d*$", "", host).strip("[]").partition("%")[0].rstrip(".").lower()
        if name in self._names:
            return True
        try:
            return bool(ip_address(name))
        except ValueError:
            return False

    def _readyz(self, _request: Request) -> Response:
        reason = self._not_ready()
        return _text("ready") if reason is None else _text(f"not ready: {reason}", 503)

    def _metrics(self, request: Request) -> Response:
        names = set(parse_qs(request.query).get("name[]", ()))
        registry: Collector = _Restricted(self._registry, names) if names else self._registry
        try:
            encode, content_type = choose_encoder(_plain(request.headers.get("accept", "")))
            body = encode(registry)
        except (ValueError, LookupError, TypeError):  # version=x, for example
            encode, content_type = choose_encoder("")
            body = encode(registry)
        if packed := _takes_gzip(request):
            body = gzip.compress(body, compresslevel=1)
        return Response(200, body, content_type, _coding(packed) | {"Vary": "Accept, Accept-Encoding"})

    def _live(self, request: Request) -> Response:
        packed = _takes_gzip(request)
        headers = {"Content-Security-Policy": self._document.policy, "Cache-Control": "no-cache"}
        body = self._document.packed if packed else self._document.html
        return Response(200, body, "text/html; charset=utf-8", _coding(packed) | headers)

    def _status(self, request: Request) -> Response:
        content = self._page.content(_since(request.query))
        body = json.dumps(content, separators=(",", ":")).encode()
        return Response(200, body, "application/json", {"Cache-Control": "no-store"})


def own_names(more: str) -> set[str]:
    """Return the names of this machine, and those in a list with commas, in lower case."""
    name = socket.gethostname()
    names = {name, name.partition(".")[0], *more.split(",")}
    return {each.strip().lower() for each in names} - {""}


class _Restricted:
    """The metrics of a registry that have one of these names, or a sample with one of them."""

    def __init__(self, registry: CollectorRegistry, names: set[str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Any:
        for family in self._registry.collect():
            if not self._names.isdisjoint({family.name, *(sample.name for sample in family.samples)}):
                yield family


def _since(query: str) -> float:
    """Return the time in a query; without one, a time before everything."""
    try:
        since = float(parse_qs(query)["since"][0])
    except (KeyError, ValueError):
        return -math.inf
    return -math.inf if math.isnan(since) else since


def _takes_gzip(request: Request) -> bool:
    return accepts_gzip(request.headers.get("accept-encoding", ""))


def _coding(packed: bool) -> dict[str, str]:  # noqa: FBT001  # the only argument
    return {"Vary": "Accept-Encoding"} | ({"Content-Encoding": "gzip"} if packed else {})


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header accepts gzip (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        coding, _, parameters = part.partition(";")
        match = re.search(r"q\s*=\s*([\d.]+)", parameters)
        try:
            weights[coding.strip()] = float(match[1]) if match else 1.0
        except ValueError:
            weights[coding.strip()] = 0.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def _plain(header: str) -> str:
    """Return the value of a header, or "" if it has anything but printable ASCII."""
    return header if header.isascii() and header.isprintable() else ""


def _text(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(status, f"{text}\n".encode(), headers=headers or {})
