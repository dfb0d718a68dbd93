"""One HTTP connection, byte by byte, over TCP and TLS: RFC 9112, and what attackers send."""

from contextlib import suppress

import pytest
import trio

from tests.helpers.servers import PATIENCE, raw, receive_all, reset_on_close, until
from tests.helpers.web import Web, authorization, get
from tests.web.conftest import StartWeb
from tests.web.test_passwords import hashed
from triojam.core.reasons import WebRejection
from triojam.web import http_connection
from triojam.web.http_connection import LONGEST_HEAD

CLOSE = "Connection: close"
# SETTINGS with a window of 0, GET /, and eleven DATA frames of one byte.
H2_PREFACE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + bytes.fromhex("000006040000000000000400000000000006010400000001828486410178")
    + bytes.fromhex("00000100000000000161") * 11
)
CHUNKS = b"1\r\na\r\n" * 30


async def test_http_2_is_refused_at_any_time(listener: Web) -> None:
    """32 clients with an HTTP/2 preface get status 505, and each is closed."""
    for _ in range(32):
        (answer,) = await listener.exchange(H2_PREFACE)
        assert (answer.status, answer.headers["connection"]) == (505, "close")
    assert listener.counters.web_rejected[WebRejection.BAD_REQUEST] == 32


async def test_an_unread_body_takes_no_place(start_web: StartWeb) -> None:
    """32 requests with a wrong password and a chunked body get status 413, and their places are free."""
    web = await start_web(hashes={b"alice": hashed("secret").encode()})
    request = get("/metrics", authorization("alice", "x"), "Transfer-Encoding: chunked", method="POST")
    for _ in range(32):
        (answer,) = await web.exchange(request + CHUNKS)
        assert answer.status == 413
    await web.at_rest(authorization("alice", "secret"))


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize("line", [f"Content-Length: {3_000_000}", "Transfer-Encoding: chunked"])
async def test_a_body_is_refused_unread(method: str, line: str, listener: Web) -> None:
    """A request with 3 MB of body gets status 413 before the body is read."""
    async with await listener.connect() as client:
        await client.send_all(get("/", line, method=method))
        received = b""
        while b"\r\n\r\n" not in received:
            received += await client.receive_some()
        assert received.startswith(b"HTTP/1.1 413 ")
        with suppress(trio.BrokenResourceError):  # the server closes before it has read all
            await client.send_all(bytes(3_000_000))
    assert listener.counters.web_rejected[WebRejection.BODY] == 1


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"G\xc3\xa4T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX\xff: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"TIME\r\n\r\n",
        b"\r\n\r\n",
        b"\x80\r\n\r\n",
    ],
)
async def test_bytes_that_are_not_http_get_400(request_: bytes, listener: Web) -> None:
    """A malformed request gets status 400, and is closed and counted."""
    (answer,) = await listener.exchange(request_, end=True)
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert listener.counters.web_rejected[WebRejection.BAD_REQUEST] == 1


@pytest.mark.parametrize("pieces", [(b"TIME\r\n",), (b"GET /\n",), (b"SSH-2.0-x", b"y\r\n"), (b"\r\n",)])
async def test_another_protocol_is_refused_at_its_first_line(pieces: list[bytes], listener: Web) -> None:
    """A line that cannot begin an HTTP request gets status 400 before an empty line follows it."""
    (answer,) = await listener.exchange(*pieces)
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert listener.counters.web_rejected[WebRejection.BAD_REQUEST] == 1


async def test_any_byte_in_a_header_value_is_harmless(listener: Web) -> None:
    """Bytes above 127 in the value of a header, of Host too, get a status below 500."""
    for name in ("Accept", "Accept-Encoding", "Authorization", "Cookie", "X"):
        (answer,) = await listener.exchange(get("/metrics", f"{name}: \xff\x80", CLOSE))
        assert answer.status == 200
    (answer,) = await listener.exchange(b"GET / HTTP/1.1\r\nHost: \xff\r\nConnection: close\r\n\r\n")
    assert answer.status == 421


ACCEPTS = [
    "application/openmetrics-text;version=x", "application/openmetrics-text;version=", "\xff",
    "application/openmetrics-text;version=1.0.0;escaping=x", "application/openmetrics-text;version=1_0.0.0",
    "application/openmetrics-text;version=9" + "0" * 5000, "application/openmetrics-text;version=2.0.0",
    "application/openmetrics-text;version=2.0.x",
    "application/openmetrics-text;version=1.0.0\tx", "text/plain;version=-1", "text/plain;version=1.0.0.0.0",
    "text/plain;escaping=allow-utf-8;version=1.0.0", ";", "," * 1000, ";version", "*/*;q=x", "image/png",
]  # fmt: skip


@pytest.mark.parametrize("accept", ACCEPTS, ids=lambda accept: accept[:60])
async def test_any_accept_gets_a_format(accept: str, listener: Web) -> None:
    """Any value of Accept gets status 200 and metrics."""
    (answer,) = await listener.exchange(get("/metrics", f"Accept: {accept}", CLOSE))
    assert answer.status == 200
    assert b"triojam_requests_total 0.0\n" in answer.body


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_two_lengths_are_refused(version: str, listener: Web) -> None:
    """Content-Length with Transfer-Encoding gets status 400, and the connection ends (RFC 9112, 6.1)."""
    lines = ("Content-Length: 0", "Transfer-Encoding: chunked")
    request = get("/healthz", *lines, version=version) + b"0\r\n\r\n" + get()
    (answer,) = await listener.exchange(request)
    assert (answer.status, answer.headers["connection"]) == (400, "close")


@pytest.mark.parametrize(
    "line",
    ["Content-Length: -1", "Content-Length: " + "9" * 5000, "Content-Length: 0, 1", "Content-Length: \xb2"],
)
async def test_a_length_that_is_no_number_is_refused(line: str, listener: Web) -> None:
    """A malformed Content-Length gets status 400."""
    (answer,) = await listener.exchange(get("/healthz", line))
    assert answer.status == 400


async def test_an_unknown_coding_is_refused(listener: Web) -> None:
    """A Transfer-Encoding other than chunked gets status 501 (RFC 9112, 6.1)."""
    (answer,) = await listener.exchange(get("/healthz", "Transfer-Encoding: gzip, chunked"))
    assert answer.status == 501


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/healthz", 200),
        ("HTTPS://LOCALHOST:1/healthz", 200),
        ("http://localhost", 200),
        ("http://localhost?x=/", 200),
        ("http://localhost/nothing", 404),
        ("http://example.com/healthz", 421),
        ("http://localhost@example.com/healthz", 421),
        ("ftp://localhost/healthz", 404),
        ("*", 404),
        ("localhost:80", 404),
    ],
)
async def test_absolute_form_is_understood(target: str, status: int, listener: Web) -> None:
    """A target in absolute-form is served; its host counts, and not the header (RFC 9112, 3.2.2)."""
    (answer,) = await listener.exchange(get(target, CLOSE))
    assert answer.status == status


@pytest.mark.parametrize("method", ["CONNECT", "OPTIONS", "PRI", "M-SEARCH"])
async def test_other_methods_keep_the_connection(method: str, listener: Web) -> None:
    """Another method gets status 405, and the next request on the connection is answered."""
    target = "localhost:80" if method == "CONNECT" else "*"
    answers = await listener.exchange(get(target, method=method) + get("/healthz", CLOSE))
    assert [answer.status for answer in answers] == [405, 200]


async def test_an_upgrade_is_ignored(listener: Web) -> None:
    """A request to upgrade to HTTP/2 or WebSocket gets its answer over HTTP/1.1 (RFC 9110, 7.8)."""
    for protocol in ("h2c", "websocket"):
        lines = (f"Upgrade: {protocol}", "Connection: Upgrade")
        answers = await listener.exchange(get("/healthz", *lines) + get("/healthz", CLOSE))
        assert [answer.status for answer in answers] == [200, 200]


async def test_pipelined_requests_are_answered_in_order(listener: Web) -> None:
    """Requests that come at once, cut anywhere, are answered one after the other."""
    paths = ["/healthz", "/nothing", "/readyz", "/status", "/healthz"]
    sent = b"".join(get(path) for path in paths) + get("/nothing", CLOSE)
    for cut in (1, 20, 61, len(sent) - 1):
        answers = await listener.exchange(sent[:cut], sent[cut:])
        assert [answer.status for answer in answers] == [200, 404, 200, 200, 200, 404]


async def test_a_bad_request_ends_a_pipeline(listener: Web) -> None:
    """What follows a bad request is not answered."""
    answers = await listener.exchange(get("/", method="HEAD") + b"BAD\r\n\r\n" + get(), methods=["HEAD"])
    assert [answer.status for answer in answers] == [200, 400]


async def test_a_client_that_half_closes_is_answered(listener: Web) -> None:
    """A client may end its sending side after its requests; it gets all answers."""
    answers = await listener.exchange(get() + get("/metrics"), end=True)
    assert [answer.status for answer in answers] == [200, 200]


async def test_half_a_request_gets_400(listener: Web) -> None:
    """A client that ends its sending side within a request gets status 400.

    Over TLS, Trio cannot send any more after the end of TCP without close_notify.
    """
    answers = await listener.exchange(b"GET / HTTP/1.1\r\nHost: loc", end=True)
    assert [answer.status for answer in answers] == ([] if listener.tls else [400])


async def test_the_last_answer_ends_tls(listener: Web) -> None:
    """After the last answer, the client gets the end of the stream; over TLS, close_notify."""
    async with await listener.connect() as client:
        await client.send_all(get("/healthz", CLOSE))
        assert (await receive_all(client)).endswith(b"ok\n")


async def test_headers_have_a_limit(listener: Web) -> None:
    """A request line or headers beyond the limit get status 431."""
    long = "x" * (LONGEST_HEAD + 5000)
    for request in (get(f"/{long}"), get("/", f"X: {long}"), get("/", *["X: y"] * (LONGEST_HEAD // 4))):
        (answer,) = await listener.exchange(request)
        assert answer.status == 431


@pytest.mark.parametrize("lines", [(), ("Connection: keep-alive",)])
async def test_http_1_0_gets_one_answer(lines: tuple[str, ...], listener: Web) -> None:
    """A client of HTTP/1.0 gets an answer, and the connection ends; it need not name a host."""
    (answer,) = await listener.exchange(get("/healthz", *lines, version="1.0"))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    (answer,) = await listener.exchange(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert answer.status == 200


async def test_head_has_a_length_and_no_body(listener: Web) -> None:
    """HEAD of the page has the length of GET and no body, and keeps the connection."""
    requests = get("/", method="HEAD") + get("/", CLOSE)
    head, page = await listener.exchange(requests, methods=["HEAD"])
    assert head.body == b""
    assert int(head.headers["content-length"]) == len(page.body) > 1000


async def test_a_connection_serves_many_requests(listener: Web) -> None:
    """A client keeps one connection for many requests."""
    async with await listener.connect() as client:
        for _ in range(200):
            assert (await listener.ask(client, get())).status == 200
        assert listener.places == 1


async def test_answers_have_the_headers_of_http(listener: Web) -> None:
    """Every answer has a date, and tells browsers not to guess its type."""
    requests = [get(path) for path in ("/", "/healthz", "/nothing", "/metrics")]
    for answer in await listener.exchange(*requests, b"BAD\r\n\r\n"):
        assert answer.headers["date"].endswith(" GMT")
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\n", get("/")[:-2]])
async def test_a_request_has_a_deadline(sent: bytes, listener: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte from time to time gets status 408 at the deadline."""
    monkeypatch.setattr(http_connection, "REQUEST_SECONDS", 0.2)
    async with await listener.connect() as client, trio.open_nursery() as nursery:

        async def drip() -> None:
            with suppress(trio.BrokenResourceError):
                for byte in sent + b"X" * 1000:
                    await client.send_all(bytes([byte]))
                    await trio.sleep(0.01)

        nursery.start_soon(drip)
        received = b""
        while b"\r\n\r\n" not in received:
            received += await client.receive_some()
        nursery.cancel_scope.cancel()
        assert received.startswith(b"HTTP/1.1 408 ")
    assert listener.counters.web_rejected[WebRejection.TIMEOUT] == 1


async def test_an_unread_answer_has_a_deadline(listener: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing is disconnected, and counted."""
    monkeypatch.setattr(http_connection, "SEND_SECONDS", 0.1)
    async with await listener.connect() as client:
        with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
            while True:
                await client.send_all(get("/metrics") * 10)
    assert listener.counters.web_rejected[WebRejection.TIMEOUT] == 1


@pytest.mark.parametrize("kept", [False, True])
async def test_silence_ends_a_connection(
    kept: bool,  # noqa: FBT001  # a parameter of the test
    listener: Web,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that is silent before its first request, or after one, is closed without an answer."""
    monkeypatch.setattr(http_connection, "IDLE_SECONDS" if kept else "FIRST_SECONDS", 0.05)
    client = await listener.connect()
    if kept:
        await listener.ask(client, get())
    assert await receive_all(client) == b""


@pytest.mark.parametrize("sent", [b"", b"GET", get("/status"), get("/metrics") * 100], ids=len)
async def test_a_reset_frees_the_place(sent: bytes, listener: Web) -> None:
    """A client that resets its connection at any time leaves nothing behind."""
    client = await listener.connect()
    await client.send_all(sent)
    await until(lambda: listener.places == 1)
    reset_on_close(raw(client))
    await trio.aclose_forcefully(client)
    await until(lambda: not listener.places)
