"""The web listener: metrics, health, readiness and the live page, over HTTP on real sockets."""

import base64
import gzip
import hashlib
import http.client
import json
import os
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from importlib.resources import files
from types import MappingProxyType
from typing import cast

import pytest
import trio
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Start
from tests.dashboards.test_dashboards import OF_THE_KERNEL
from tests.docs.test_docs import labels_cell
from tests.helpers.pages import table
from tests.helpers.scrape import Address, Scrape, fetch, scrape
from tests.helpers.servers import (
    JAM,
    NOW,
    PATIENCE,
    Events,
    Running,
    receive_all,
    settings_for_test,
    start_tcp,
    until,
)
from triojam import __version__
from triojam.server import open_server
from triojam.web.http_server import GRACEFUL_SECONDS
from triojam.web.page import document

Parse = Callable[[str], Iterable[Metric]]

# Metrics that the test of all series leaves out, and the reasons.
NOT_FROM_THE_START = {
    "triojam_build_info": "its labels are versions",
    "triojam_tls_certificate_not_after_seconds": "only listeners that use TLS have a certificate; 0 is 1970",
}

PATHS = ["/", "/status", "/metrics", "/healthz", "/readyz"]
TEXT = MappingProxyType({"Accept": "text/plain"})
OPENMETRICS = MappingProxyType({"Accept": "application/openmetrics-text; version=1.0.0"})

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


async def test_every_series_exists_from_the_start(web: Address) -> None:
    """Before the first client, a scrape has each row of docs/metrics.md with all labels; counters are 0."""
    reply = await fetch(web, "/metrics")
    families = {each.name: each for each in text_string_to_metric_families(reply.text)}
    seen = Scrape([sample for family in families.values() for sample in family.samples])
    for cell, kind, labels, _ in table("docs/metrics.md", "The metrics"):
        name = cell.strip("`")
        if name in OF_THE_KERNEL - families.keys() or name in NOT_FROM_THE_START:
            continue
        family = families[name.removesuffix("_total")]
        assert (family.type, labels_cell(family)) == (kind, labels), name
        if kind == "histogram":
            assert seen.total(f"{name}_count") == seen.total(f"{name}_bucket", le="+Inf")
            assert seen.total(f"{name}_sum") >= 0
        elif kind == "counter":
            assert seen.total(name) == 0
    for name in LIBRARY:
        assert seen.total(name) >= 0
    assert not [each.name for each in seen.samples if each.name.endswith("_created")]


async def test_gauges_have_the_values_of_the_server(running: Running, web: Address) -> None:
    """Connections, limit, clock, readiness and build are those of the running server."""
    await running.connect()
    await until(lambda: running.counters.connections_open == 1)
    seen = await scrape(web)
    for name, value in {
        "connections_open": 1,
        "connections_limit": running.counters.connections_limit,
        "clock_seconds": NOW,
        "ready": 1,
        "draining": 0,
    }.items():
        assert seen.total(f"triojam_{name}") == value, name
    assert seen.total("triojam_build_info", version=__version__, trio=trio.__version__) == 1


async def test_both_formats_have_the_requests(running: Running, web: Address) -> None:
    """Prometheus text and OpenMetrics, by negotiation, can be parsed and have the same counters."""
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


async def test_a_scrape_is_compressed_on_request(web: Address) -> None:
    """Only a scraper that accepts gzip gets gzip."""
    packed = await fetch(web, "/metrics", headers=MappingProxyType({"Accept-Encoding": "gzip"}))
    assert packed.headers["Content-Encoding"] == "gzip"
    assert b"triojam_requests_total 0.0\n" in gzip.decompress(packed.body)
    plain = await fetch(web, "/metrics", headers=MappingProxyType({"Accept-Encoding": "identity"}))
    assert plain.headers["Content-Encoding"] is None


@pytest.mark.parametrize(
    ("header", "packed"),
    [
        ("gzip", True), ("gzip;q=0", False), ("gzip; q=0.0", False), ("*", True), ("*;q=0", False),
        ("", False), ("identity, GZIP;q=0.1", True), ("gzip;q=x", True), ("gzip;q=1.2.3", False),
        ("*, gzip;q=0", False), ("br", False), (",;,=", False),
    ],
)  # fmt: skip
async def test_gzip_follows_the_weights(header: str, packed: bool, web: Address) -> None:  # noqa: FBT001  # a parameter
    """A weight of 0 forbids gzip (RFC 9110, 12.4.2), and caches are told what the answer depends on."""
    reply = await fetch(web, "/metrics", headers=MappingProxyType({"Accept-Encoding": header}))
    assert (reply.headers["Content-Encoding"] == "gzip") == packed
    assert {each.strip() for each in reply.headers["Vary"].split(",")} == {"Accept", "Accept-Encoding"}


@pytest.mark.parametrize(
    ("names", "series"),
    [
        (["triojam_requests_total"], {"triojam_requests_total"}),
        (["triojam_requests"], {"triojam_requests_total"}),
        (["triojam_ready", "python_info"], {"triojam_ready", "python_info"}),
        (
            ["triojam_request_duration_seconds_count"],
            {f"triojam_request_duration_seconds_{each}" for each in ("bucket", "count", "sum")},
        ),
        (["nothing"], set()),
    ],
)
@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS], ids=["text", "openmetrics"])
async def test_a_scrape_may_name_its_metrics(
    names: list[str], series: set[str], accept: MappingProxyType[str, str], web: Address
) -> None:
    """`name[]` selects whole metrics, by their own name or that of a sample."""
    query = "&".join(f"name%5B%5D={name}" for name in names)
    reply = await fetch(web, f"/metrics?{query}", headers=accept)
    strict = cast(Parse, openmetrics_parser.text_string_to_metric_families)
    parse: Parse = strict if accept is OPENMETRICS else text_string_to_metric_families
    assert {sample.name for family in parse(reply.text) for sample in family.samples} == series
    assert len((await scrape(web)).samples) > 50  # the next scrape has everything


OWN = socket.gethostname()
HOSTS = [
    ("localhost", 200), ("LOCALHOST:45001", 200), ("localhost.", 200), ("127.0.0.1", 200),
    ("[::1]:45001", 200), ("192.0.2.1:1", 200), ("[fe80::1%25eth0]", 200), (OWN, 200),
    (f"{OWN.upper()}:1", 200), ("time.example", 200), ("Time.Example.:45001", 200), ("b.example", 200),
    ("example", 421), ("evil.example", 421), ("", 421), ("localhost.evil.example", 421),
    ("127.0.0.1.evil.example", 421),
    ("evil.example:127.0.0.1", 421), ("a@localhost", 421), ("localhost, evil.example", 421),
    ("2130706433", 421),
]  # fmt: skip


@pytest.mark.parametrize(("host", "status"), HOSTS)
async def test_a_foreign_name_is_refused(host: str, status: int, start_tcp_only: Running) -> None:
    """A request names an IP address, localhost, this machine, or a name of metrics_names; otherwise 421.

    A page in a browser could read another name's answers by DNS rebinding.
    """
    for path in PATHS:
        headers = MappingProxyType({"Host": host})
        assert (await fetch(web_of(start_tcp_only), path, headers=headers)).status == status


@pytest.fixture
async def start_tcp_only(nursery: trio.Nursery) -> Running:
    """A server with two more names."""
    return await start_tcp(nursery, metrics_port=0, metrics_names="time.example, b.example")


async def test_a_serving_server_is_healthy_and_ready(web: Address) -> None:
    """/healthz and /readyz answer 200."""
    for path, text in (("/healthz", "ok\n"), ("/readyz", "ready\n")):
        reply = await fetch(web, path)
        assert (reply.status, reply.text) == (200, text)


async def test_a_starting_server_is_not_ready() -> None:
    """The web listener starts first: until the server accepts clients, /readyz is 503 with the reason."""
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


async def test_the_live_page_may_run_only_its_own_script(web: Address) -> None:
    """The policy of `/` allows its own scripts and styles, and its own server, and nothing else."""
    page = await fetch(web, "/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    directives = dict(each.split(" ", 1) for each in page.headers["Content-Security-Policy"].split("; "))
    hashed = {name: directives.pop(f"{name}-src").split() for name in ("script", "style")}
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    for tag, allowed in hashed.items():
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in texts]
        assert allowed == [f"'sha256-{digest}'" for digest in digests]
        assert len(allowed) == 2


async def test_the_live_page_is_asked_for_anew_and_may_be_packed(web: Address) -> None:
    """No cache keeps the page of an older version. A browser that accepts gzip gets fewer bytes."""
    plain = await fetch(web, "/", headers=MappingProxyType({"Accept-Encoding": "identity"}))
    packed = await fetch(web, "/", headers=MappingProxyType({"Accept-Encoding": "gzip"}))
    for reply in (plain, packed):
        assert (reply.headers["Cache-Control"], reply.headers["Vary"]) == ("no-cache", "Accept-Encoding")
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < 0.5 * len(plain.body)


def test_the_page_is_small_and_complete() -> None:
    """All that the page loads has less than 100 kB, and nothing of it comes from elsewhere."""
    html = document.load().html.decode()
    assert len(html.encode()) < 100_000
    assert "{{" not in html
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'> ]*[/:]""", html)
    assert "url(" not in html


def test_the_chart_library_has_its_licence() -> None:
    """The licence of the chart library is shipped beside it."""
    assets = files("triojam.web").joinpath("assets")
    assert "MIT License" in assets.joinpath("uPlot.LICENSE").read_text("utf-8")


async def test_status_has_counters_and_tasks(running: Running, web: Address) -> None:
    """`/status` has the counters and the running tasks."""
    assert running.server is not None
    await running.ask(b"TIME\r\n" * 1234 + b"HELLO\r\n")
    reply = await fetch(web, "/status")
    assert reply.headers["Cache-Control"] == "no-store"
    status = json.loads(reply.text)
    assert (status["requests"], status["responses"], status["rejected"]) == (1235, 1234, 1)
    assert (status["version"], status["state"], status["in_flight"]) == (__version__, "ready", 0)
    assert status["rejected_by_reason"]["bad_command"] == 1
    assert (status["time"], status["fraction"]) == ("12:34:56", 0.25)
    assert (status["zone"], status["utc_offset"]) == ("UTC", "+00:00")
    assert status["pid"] == os.getpid()
    assert status["name"] == f"{socket.gethostname()}:{running.server.addresses[0][1]}"
    assert "connection" in json.dumps(status["tasks"])


async def test_status_has_every_total_of_a_scrape(running: Running, web: Address) -> None:
    """Each counter with a label stands in `/status` with the same values and numbers."""
    status = json.loads((await fetch(web, "/status")).text)
    seen = await scrape(web)
    for key, name, label in (
        ("rejected_by_reason", "rejected", "reason"),
        ("refused_by_reason", "connections_rejected", "reason"),
        ("send_errors_by_reason", "response_send_errors", "reason"),
        ("disconnects_by_reason", "disconnects", "reason"),
        ("handovers_by_cause", "lane_handovers", "cause"),
        ("accept_errors_by_errno", "accept_errors", "errno"),
        ("web_rejected_by_reason", "web_rejected", "reason"),
        ("auth_failures_by_reason", "web_auth_failures", "reason"),
        ("reloads_by_result", "config_reloads", "result"),
        ("self_checks_by_result", "self_checks", "result"),
    ):
        samples = [each for each in seen.samples if each.name == f"triojam_{name}_total"]
        assert status[key] == {each.labels[label]: each.value for each in samples}


async def test_status_sends_only_what_is_new(running: Running, web: Address) -> None:
    """With `since`, the history has only later rows; a time that is no number is ignored."""
    assert running.server is not None
    history = running.server._live_page._history
    await until(lambda: len(history.since(0.0)) >= 2)
    whole = json.loads((await fetch(web, "/status")).text)["history"]
    assert whole["columns"][0] == "at"
    first, second = whole["rows"][:2]
    later = json.loads((await fetch(web, f"/status?since={first[0]}")).text)["history"]["rows"]
    assert later[0] == second
    for query in ("", "?since", "?since=x", "?since=nan", "?since=-inf", "?since=1&since=x", "?until=1"):
        status = json.loads((await fetch(web, f"/status{query}")).text)
        assert status["history"]["rows"][0] == first
    assert json.loads((await fetch(web, "/status?since=inf")).text)["history"]["rows"] == []


@pytest.mark.parametrize("path", PATHS)
async def test_head_has_the_headers_of_get(path: str, web: Address) -> None:
    """HEAD has the headers of GET and no body, and the connection can be used again."""

    def ask_twice() -> None:
        with closing(http.client.HTTPConnection(*web, timeout=PATIENCE)) as connection:
            connection.request("HEAD", path)
            head = connection.getresponse()
            assert (head.status, head.read()) == (200, b"")
            connection.request("GET", path)
            reply = connection.getresponse()
            assert reply.status == 200
            assert reply.read()
            assert reply.headers["Content-Type"] == head.headers["Content-Type"]

    await trio.to_thread.run_sync(ask_twice)


@pytest.mark.parametrize("path", PATHS)
async def test_other_methods_get_405(path: str, web: Address) -> None:
    """Every method except GET and HEAD is 405, and the reply names those two."""
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        reply = await fetch(web, path, method=method)
        assert reply.status == 405
        assert {each.strip() for each in reply.headers["Allow"].split(",")} == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/nothing", "/metrics/x", "/..", "/%00", "//"])
async def test_an_unknown_path_gets_404(path: str, web: Address) -> None:
    """There are no other paths."""
    assert (await fetch(web, path)).status == 404


async def test_bytes_that_are_not_http_get_4xx(running: Running, web: Address) -> None:
    """Large headers and random bytes get 4xx or a closed connection; the next request is served."""
    for nonsense in (b"TIME\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000):
        async with await trio.open_tcp_stream(*web) as client:
            try:
                await client.send_all(nonsense)
                await client.send_eof()
                answer = await receive_all(client)
            except trio.BrokenResourceError:  # the server closed with unread bytes
                answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert (await fetch(web, "/healthz")).status == 200
    assert not [event for event in running.events if event["level"] == "error"]


async def test_failures_share_a_log_line(
    running: Running, web: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many requests fail, one line in ten seconds has a traceback, and no header of a client."""
    assert running.server is not None

    def fail(_since: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(running.server._live_page, "content", fail)
    for path in ("/status", "/status?since=1") * 20:
        headers = MappingProxyType({"Authorization": "Basic c2VjcmV0"})
        with suppress(OSError, http.client.HTTPException):
            assert (await fetch(web, path, headers=headers)).status in (200, 500)
    (event,) = [event for event in running.events if event["level"] == "error"]
    assert event["failures"] == 1
    assert "c2VjcmV0" not in str(running.events)


@pytest.fixture
async def midline(running: Running) -> trio.abc.Stream:
    """A client in the middle of a line: a drain waits until the line ends."""
    client = await running.connect()
    await client.send_all(b"TI")
    await until(running.midline)
    return client


async def test_the_web_listener_ends_last(running: Running, web: Address, midline: trio.abc.Stream) -> None:
    """While a drain waits for a client, new clients are refused, and the web listener shows the drain."""
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
async def test_an_open_scraper_does_not_delay_the_end(
    requests: bytes, running: Running, web: Address
) -> None:
    """A connection that is idle or within a request delays the end by the graceful time at most."""
    async with await trio.open_tcp_stream(*web) as scraper:
        await scraper.send_all(requests)
        if requests.endswith(b"\r\n\r\n"):
            assert (await scraper.receive_some()).startswith(b"HTTP/1.1 200")
        running.drain()
        with trio.fail_after(GRACEFUL_SECONDS + 4):
            await running.finished.wait()
