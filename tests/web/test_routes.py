"""The second listener: metrics, health, readiness and the live page, over HTTP on real sockets."""

import gzip
import http.client
import json
import re
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import cast

import pytest
import trio
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Start
from tests.helpers.scrape import Address, Scrape, fetch, scrape
from tests.helpers.servers import JAM, NOW, PATIENCE, Events, Running, receive_all, settings_for_test, until
from triojam import __version__
from triojam.core.reasons import AcceptError, AuthFailure, Disconnect, Refusal, Rejection, Reload, SendError
from triojam.server import open_server
from triojam.web.http_server import GRACEFUL_SECONDS
from triojam.web.routes import MOST_STREAMS

Parse = Callable[[str], Iterable[Metric]]

PATHS = ["/", "/status", "/metrics", "/healthz", "/readyz"]
TEXT = MappingProxyType({"Accept": "text/plain"})
OPENMETRICS = MappingProxyType({"Accept": "application/openmetrics-text; version=1.0.0"})

PLAIN = [
    "triojam_requests_total", "triojam_responses_total", "triojam_connections_total",
    "triojam_connections_open", "triojam_connections_limit", "triojam_internal_errors_total",
    "triojam_clock_seconds", "triojam_clock_steps_total", "triojam_ready", "triojam_draining",
    "triojam_log_messages_dropped_total", "triojam_build_info",
]  # fmt: skip
LABELLED = {
    "triojam_rejected_total": ("reason", Rejection),
    "triojam_response_send_errors_total": ("reason", SendError),
    "triojam_connections_rejected_total": ("reason", Refusal),
    "triojam_disconnects_total": ("reason", Disconnect),
    "triojam_accept_errors_total": ("errno", AcceptError),
    "triojam_web_auth_failures_total": ("reason", AuthFailure),
    "triojam_config_reloads_total": ("result", Reload),
}
HISTOGRAMS = [
    "triojam_request_duration_seconds", "triojam_request_receive_seconds", "triojam_event_loop_lag_seconds",
]  # fmt: skip
LIBRARY = ["process_resident_memory_bytes", "process_open_fds", "python_info", "python_gc_collections_total"]


@pytest.fixture
async def running(start_socket: Start) -> Running:
    """A server with both listeners."""
    return await start_socket(metrics_port=0)


@pytest.fixture
def web(running: Running) -> Address:
    """The address of its web listener."""
    return web_of(running)


def web_of(running: Running) -> Address:
    """Return the address of a server's web listener."""
    assert running.server is not None
    return running.server.metrics_addresses[0]


async def test_every_metric_is_there_from_the_start(web: Address) -> None:
    """Before the first client, every series exists, with every label value; the counters are at 0."""
    seen = await scrape(web)
    for name in PLAIN:
        value = seen.total(name)
        assert value == 0 or not name.endswith("_total")
    for name, (label, values) in LABELLED.items():
        assert {each.labels[label] for each in seen.samples if each.name == name} == set(values)
        assert seen.total(name) == 0
    for name in HISTOGRAMS:
        assert seen.total(f"{name}_count") == seen.total(f"{name}_bucket", le="+Inf")
        assert seen.total(f"{name}_sum") >= 0
    for name in LIBRARY:
        assert seen.total(name) >= 0
    assert not [each.name for each in seen.samples if each.name.endswith("_created")]


async def test_gauges_say_what_is(running: Running, web: Address) -> None:
    """Connections, limit, clock, readiness and build are those of the running server."""
    await running.connect()
    await until(lambda: running.counters.connections_open == 1)
    seen = await scrape(web)
    assert seen.total("triojam_connections_open") == 1
    assert seen.total("triojam_connections_limit") == running.counters.connections_limit
    assert seen.total("triojam_clock_seconds") == NOW
    assert seen.total("triojam_ready") == 1
    assert seen.total("triojam_draining") == 0
    assert seen.total("triojam_build_info", version=__version__, trio=trio.__version__) == 1


async def test_requests_show_up_in_both_formats(running: Running, web: Address) -> None:
    """Text and OpenMetrics, by negotiation, each parse strictly, and hold the same accounts."""
    assert await running.ask(b"TIME\r\nHELLO\r\nTIME\r\n") == JAM + await running.ask(b"HELLO\r\n") + JAM
    plain = await fetch(web, "/metrics", headers=TEXT)
    assert plain.headers["Content-Type"].startswith("text/plain; version=")
    strict = await fetch(web, "/metrics", headers=OPENMETRICS)
    assert strict.headers["Content-Type"].startswith("application/openmetrics-text; version=1.")
    assert strict.text.endswith("# EOF\n")
    parse_strictly = cast(Parse, openmetrics_parser.text_string_to_metric_families)  # has no annotations
    for text, parse in ((plain.text, text_string_to_metric_families), (strict.text, parse_strictly)):
        seen = Scrape([each for family in parse(text) for each in family.samples])
        assert seen.total("triojam_requests_total") == 4
        assert seen.total("triojam_responses_total") == 2
        assert seen.total("triojam_rejected_total", reason="bad_command") == 2
        assert seen.total("triojam_request_duration_seconds_count") == 2
        assert seen.unaccounted == 0


async def test_a_scrape_is_compressed_for_who_asks(web: Address) -> None:
    """A scraper that accepts gzip gets gzip, and another does not."""
    packed = await fetch(web, "/metrics", headers=MappingProxyType({"Accept-Encoding": "gzip"}))
    assert packed.headers["Content-Encoding"] == "gzip"
    assert b"triojam_requests_total 0.0\n" in gzip.decompress(packed.body)
    plain = await fetch(web, "/metrics", headers=MappingProxyType({"Accept-Encoding": "identity"}))
    assert plain.headers["Content-Encoding"] is None


async def test_health_and_readiness(web: Address) -> None:
    """A server that serves is healthy and ready."""
    for path, text in (("/healthz", "ok\n"), ("/readyz", "ready\n")):
        reply = await fetch(web, path)
        assert (reply.status, reply.text) == (200, text)


async def test_not_ready_before_it_accepts() -> None:
    """The web listener is first to answer: until clients are let in, /readyz is 503 and says starting."""
    server = await open_server(
        settings_for_test(metrics_port=0), make_logger=Events().make_logger, log_messages_dropped=int
    )
    may_stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(server._serve_web, may_stop)
        reply = await fetch(server.metrics_addresses[0], "/readyz")
        assert (reply.status, reply.text) == (503, "not ready: starting\n")
        assert (await fetch(server.metrics_addresses[0], "/healthz")).status == 200
        may_stop.set()
    server._sockets.close()


async def test_the_live_page(web: Address) -> None:
    """`/` is a page that may run nothing but its own script, and ask nobody else."""
    page = await fetch(web, "/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert policy.count("'sha256-") == 2
    for part in ("<h1>triojam", 'href="/metrics"', 'href="/healthz"', 'href="/readyz"'):
        assert part in page.text


async def test_status(running: Running, web: Address) -> None:
    """`/status` has the counters, how they went, and the tasks that run."""
    await running.ask(b"TIME\r\n" * 1234 + b"HELLO\r\n")
    reply = await fetch(web, "/status")
    assert reply.headers["Cache-Control"] == "no-store"
    status = json.loads(reply.text)
    assert (status["requests"], status["responses"], status["rejected"]) == (1235, 1234, 1)
    assert (status["version"], status["state"], status["in_flight"]) == (__version__, "ready", 0)
    assert status["rejected_by_reason"]["bad_command"] == 1
    assert int(status["second_of_day"]) == NOW % 86_400 // 1
    assert 0 < status["p50"] <= status["p99"] < 1
    assert len(status["history"]) >= 1
    assert "serve_listeners" in json.dumps(status["tasks"])


async def test_events(running: Running, web: Address) -> None:
    """`/events` begins with all of the past, goes on with a sample a second, and ends with the server."""
    async with await trio.open_tcp_stream(*web) as client:
        await client.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = b""
        with trio.fail_after(PATIENCE):
            while received.count(b"data: ") < 2:
                received += await client.receive_some()
        first, second = (json.loads(each) for each in re.findall(rb"data: (.*)\n\n", received))
        assert "history" in first
        assert len(second["sample"]) == 4
        assert "history" not in second
        running.drain()
        assert (await receive_all(client)).endswith(b"0\r\n\r\n")  # a stream that was not cut off


async def test_too_many_pages(web: Address) -> None:
    """Pages beyond a few are told to ask for the status instead, and scrapers still have room."""
    streams = [await trio.open_tcp_stream(*web) for _ in range(MOST_STREAMS)]
    for client in streams:
        await client.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b"data: " not in received:
            received += await client.receive_some()
    assert (await fetch(web, "/events")).status == 503
    assert (await fetch(web, "/metrics")).status == 200
    for client in streams:
        await client.aclose()
    with trio.fail_after(PATIENCE):
        while (await fetch(web, "/events", method="HEAD")).status != 200:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("path", PATHS)
async def test_head(path: str, web: Address) -> None:
    """HEAD has the head of GET and no body, and the connection goes on."""

    def ask_twice() -> None:
        connection = http.client.HTTPConnection(*web, timeout=PATIENCE)
        try:
            connection.request("HEAD", path)
            head = connection.getresponse()
            assert (head.status, head.read()) == (200, b"")
            connection.request("GET", path)
            reply = connection.getresponse()
            assert reply.status == 200
            assert reply.read()
            assert reply.headers["Content-Type"] == head.headers["Content-Type"]
        finally:
            connection.close()

    await trio.to_thread.run_sync(ask_twice)


@pytest.mark.parametrize("path", PATHS)
async def test_nothing_can_be_sent_here(path: str, web: Address) -> None:
    """Any method but GET and HEAD is 405, and the reply names those two."""
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        reply = await fetch(web, path, method=method)
        assert reply.status == 405
        assert {each.strip() for each in reply.headers["Allow"].split(",")} == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/nothing", "/metrics/x", "/..", "/%00", "//"])
async def test_unknown_paths(path: str, web: Address) -> None:
    """Any other path is 404."""
    assert (await fetch(web, path)).status == 404


async def test_bytes_that_are_no_http(running: Running, web: Address) -> None:
    """Oversized headers and plain nonsense are turned away with 4xx, or closed; the next scrape is fine."""
    for nonsense in (b"TIME\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000):
        client = await trio.open_tcp_stream(*web)
        async with client:
            try:
                await client.send_all(nonsense)
                await client.send_eof()
                answer = await receive_all(client)
            except trio.BrokenResourceError:  # closed with some of the nonsense unread
                answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert (await fetch(web, "/healthz")).status == 200
    assert not [event for event in running.events if event["level"] == "error"]


@pytest.fixture
async def midline(running: Running) -> trio.abc.Stream:
    """A client in the middle of a line, which holds up a drain until it ends its line."""
    client = await running.connect()
    await client.send_all(b"TI")
    await until(running.midline)
    return client


async def test_the_web_listener_is_last_to_end(
    running: Running, web: Address, midline: trio.abc.Stream
) -> None:
    """While the last client is waited for, new ones are refused, and the drain can be watched."""
    assert running.server is not None
    running.drain()
    await until(lambda: bool(running.events.named("draining: no new clients")))
    with pytest.raises(OSError, match="connect"):
        await running.connect()
    reply = await fetch(web, "/readyz")
    assert (reply.status, reply.text) == (503, "not ready: draining\n")
    assert (await fetch(web, "/healthz")).status == 200
    seen = await scrape(web)
    assert (seen.total("triojam_ready"), seen.total("triojam_draining")) == (0, 1)
    await midline.send_all(b"ME\r\n")
    assert await receive_all(midline) == JAM
    await midline.aclose()
    with trio.fail_after(PATIENCE):
        await running.finished.wait()
    with pytest.raises(OSError, match="refused"):
        await fetch(web, "/healthz")


@pytest.mark.parametrize("requests", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /met"])
async def test_an_open_scraper_does_not_hold_up_the_end(
    requests: bytes, running: Running, web: Address
) -> None:
    """A scraper that keeps its connection, idle or amid a request, costs the graceful time at most."""
    async with await trio.open_tcp_stream(*web) as scraper:
        await scraper.send_all(requests)
        if requests.endswith(b"\r\n\r\n"):
            assert (await scraper.receive_some()).startswith(b"HTTP/1.1 200")
        running.drain()
        with trio.fail_after(GRACEFUL_SECONDS + 4):
            await running.finished.wait()
