"""Reading a server's counters from its metrics: the formats, what the server may want, and bad servers."""

import base64
import ssl
import tempfile
from collections.abc import Mapping
from typing import Any

import bcrypt
import prometheus_client
import pytest
import trio
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from tests.helpers.bad_servers import Behaviour, closes_at_once, says, silent, start_bad
from tests.helpers.servers import (
    PATIENCE,
    Running,
    assert_answered,
    balanced,
    certificate_file,
    start_tcp,
    trusting,
)
from triojam.load import readings
from triojam.load.readings import Access, Counts, MetricsError, Page, metrics_url, parse
from triojam.load.reconcile import Reconciliation

PASSWORD = "correct horse ü"
SAMPLES = """\
triojam_requests_total 9
triojam_responses_total 5
triojam_rejected_total{reason="bad_command"} 3
triojam_rejected_total{reason="too_long"} 0
triojam_response_send_errors_total{reason="reset"} 1
process_start_time_seconds 1.79567590315e+09
"""
COUNTS = Counts(9, 5, 3, 1)


def address_of(running: Running) -> str:
    """Return the address of the metrics."""
    assert running.server is not None
    host, port = running.server.metrics_addresses[0]
    return f"{host}:{port}"


async def why(url: str, access: Access = readings.OPEN) -> str:
    """Return why a page cannot be read."""
    with trio.fail_after(PATIENCE), pytest.raises(MetricsError) as caught:
        await Page(url, access).read()
    text = str(caught.value)
    assert text.startswith(f"{url}: ")
    assert PASSWORD not in text
    assert text.isprintable()
    return text.removeprefix(f"{url}: ")


async def secured(nursery: trio.Nursery, **changes: Any) -> Running:
    """Start a server whose metrics want a password."""
    with tempfile.NamedTemporaryFile("w", suffix=".htpasswd") as file:
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        file.write(f"ada:{hashed}\n")
        file.flush()
        return await start_tcp(nursery, metrics_port=0, metrics_passwords=file.name, **changes)


def test_the_counters_are_summed() -> None:
    """A counter is the sum over its labels."""
    assert parse(SAMPLES) == readings.Reading(1795675903.15, COUNTS)


@pytest.mark.parametrize(
    "odd",
    [
        "a}b",
        'a"b',
        "a\\b",
        "a\nb",
        "a # b",
        "a\u2028triojam_requests_total 7",
        "a\x0btriojam_requests_total 7\x0b",
        'x"} 7 # {',
        "a\n\ntriojam_requests_total 7\n",
        " ",
        "",
    ],
)
def test_odd_labels_do_not_change_the_counts(odd: str) -> None:
    """In both formats, label values may have any characters."""
    registry = CollectorRegistry()
    for name, number in (("requests", 9), ("responses", 5), ("rejected", 3), ("response_send_errors", 1)):
        counter = Counter(f"triojam_{name}", odd or "-", ["reason"], registry=registry)
        counter.labels(odd).inc(number - 1)
        counter.labels("other").inc(1, exemplar={"id": odd})
    assert parse(generate_latest(registry).decode()).counts == COUNTS
    page = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]  # not annotated
    assert " # {" in page
    assert parse(page).counts == COUNTS


def test_other_samples_are_not_counted() -> None:
    """Samples whose names begin with those of the counters are others; they are not parsed at all."""
    others = "triojam_requests_totally 7\ntriojam_requests_created 1.5\ntriojam_other{ not a sample\n"
    more = 'process_start_time_seconds_x 7\n{"triojam_requests_total"} 7\n# triojam_requests_total 7\n'
    assert parse(others + SAMPLES + more + "  triojam_requests_total{} 1 1795675903\n").counts == Counts(
        10, 5, 3, 1
    )


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ("", "these are not triojam's metrics"),
        ("<html>\n<p>hello", "these are not triojam's metrics"),
        ("process_start_time_seconds 5\n", "these are not triojam's metrics"),
        (SAMPLES.partition("process")[0][:-1], "the page of metrics is cut off"),
        (SAMPLES.replace("triojam_rej", "other_rej"), "these metrics do not have triojam_rejected_total"),
        (SAMPLES.replace("total 9", "total NaN"), "cannot convert float NaN to integer"),
    ],
)
def test_a_page_that_is_not_whole_has_no_counts(page: str, why: str) -> None:
    """A page without all counters, or without its end, is an error that says what is missing."""
    with pytest.raises(ValueError, match=f"^{why}$"):
        parse(page)


def test_the_library_parses_as_before() -> None:
    """On a real page, the counts are those of the library's parser for all lines."""
    page = generate_latest(prometheus_client.REGISTRY).decode() + SAMPLES
    started = [
        sample.value
        for family in prometheus_client.parser.text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "process_start_time_seconds"
    ]
    assert parse(page) == readings.Reading(started[-1], COUNTS)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_password_opens_the_metrics(nursery: trio.Nursery, *, tls: bool) -> None:
    """With the right user and password, the counters of a load are read, over TLS too."""
    changes: dict[str, Any] = {"metrics_tls": True, "tls_certificate": certificate_file()} if tls else {}
    running = await secured(nursery, **changes)
    url = f"{'https' if tls else 'http'}://{address_of(running)}/metrics"
    access = Access("ada", PASSWORD, trusting() if tls else None)
    with trio.fail_after(PATIENCE):
        made = await Reconciliation.begin([url], access)
        async with await running.connect() as client:
            await assert_answered(client)
        await balanced(running.counters)
        await made.read_last()
    assert made.counted == Counts(1, 1)
    ca = trusting() if tls else None
    assert await why(url, Access(ca=ca)) == "wants a user and a password: see --metrics-user"
    assert await why(url, Access("ada", "x", ca)) == "does not accept the password of ada"
    assert await why(url, Access("bo\x1b", "x", ca)) == "does not accept the password of bo\\x1b"


async def test_guesses_beyond_the_limit_are_named(nursery: trio.Nursery) -> None:
    """A server that limits guesses answers with another status, which is shown."""
    url = f"http://{address_of(await secured(nursery))}/metrics"
    said = {await why(url, Access("ada", str(number))) for number in range(11)}
    assert said == {"does not accept the password of ada", "answers 429 Too Many Requests"}


async def test_an_untrusted_certificate_is_named(nursery: trio.Nursery) -> None:
    """Without --metrics-ca, the system's CAs are trusted; each reason has its own sentence."""
    running = await start_tcp(nursery, metrics_port=0, metrics_tls=True, tls_certificate=certificate_file())
    address = address_of(running)
    said = await why(f"https://{address}/metrics")
    assert said.startswith("its certificate is not trusted: ")
    assert said.endswith(": see --metrics-ca")
    port = address.rpartition(":")[2]
    other = await why(f"https://127.1:{port}/metrics", Access(ca=trusting()))
    assert other.startswith("its certificate is not trusted: Hostname mismatch")
    assert "--metrics-ca" not in other
    plain = await why(f"http://{address}/metrics")
    assert plain == "closed the connection without an answer; if it speaks TLS, give a URL with https"


async def test_a_redirect_does_not_get_the_password(nursery: trio.Nursery) -> None:
    """No redirect is followed: the error names the other URL, and the other server gets no connection."""
    heard: list[bytes] = []

    async def listens(stream: trio.abc.Stream) -> None:
        heard.append(bytes(await stream.receive_some()))

    host, port = await start_bad(nursery, listens)
    for status in (301, 302, 303, 307, 308):
        answer = (
            f"HTTP/1.1 {status} Elsewhere\r\nLocation: http://{host}:{port}/\r\nContent-Length: 0\r\n\r\n"
        )
        first = await start_bad(nursery, says(answer.encode()))
        said = await why(f"http://{first[0]}:{first[1]}/metrics", Access("ada", PASSWORD))
        assert said == f"redirects to http://{host}:{port}/: give that URL, if you trust it"
    assert heard == []


async def test_the_password_is_sent_as_utf_8(nursery: trio.Nursery) -> None:
    """The credentials are in the first request, in UTF-8 (RFC 7617)."""
    heard: list[bytes] = []

    async def answers(stream: trio.abc.Stream) -> None:
        heard.append(bytes(await stream.receive_some()))
        page = SAMPLES.encode()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page))

    host, port = await start_bad(nursery, answers)
    with trio.fail_after(PATIENCE):
        reading = await Page(f"http://{host}:{port}/metrics", Access("ada", PASSWORD + "\udcff")).read()
    assert reading.counts == COUNTS
    secret = base64.b64encode(b"ada:" + PASSWORD.encode() + b"\xff")
    assert b"\r\nAuthorization: Basic " + secret + b"\r\n" in heard[0]


def answers(body: bytes, length: int | None = None, status: str = "200 OK") -> Behaviour:
    """Make a server with this answer, which closes. length: that of the header; None = there is none."""
    header = b"" if length is None else b"Content-Length: %d\r\n" % length
    return says(b"HTTP/1.1 " + status.encode("latin-1") + b"\r\n" + header + b"\r\n" + body, then_closes=True)


PAGE = SAMPLES.encode()
BAD: Mapping[str, tuple[Behaviour, str]] = {
    "cut": (answers(PAGE[:-60], len(PAGE)), "the connection ended before the page did"),
    "cut at a line": (answers(PAGE[:25], len(PAGE)), "the connection ended before the page did"),
    "cut, without a length": (answers(PAGE[:-1]), "the page of metrics is cut off"),
    "not found": (answers(b"", 0, "404 Not Found"), "answers 404 Not Found"),
    "server error": (answers(b"", 0, "500 \x1b[31moops\x9b"), "answers 500 \\x1b[31moops\\x9b"),
    "long reason": (answers(b"", 0, "500 " + "x" * 900), "answers 500 " + "x" * 288),
    "no text": (answers(b"\xff\xfe" * 9, 18), "'utf-8' codec can't decode byte 0xff in position 0"),
    "no HTTP": (says(b"\x15\x03\x03\x00\x02\x02\n", then_closes=True), "does not speak HTTP"),
    "a time server": (says(b"ERROR bad_command: \x1b\r\n"), "does not speak HTTP"),
    "closes": (closes_at_once, ""),
    "silent": (silent, "not read within 0.3 s"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_server_is_named(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each fault of a server is one printable line that says what is wrong."""
    monkeypatch.setattr(readings, "READ_TIMEOUT", 0.3 if name == "silent" else PATIENCE)
    behaviour, words = BAD[name]
    host, port = await start_bad(nursery, behaviour)
    assert (await why(f"http://{host}:{port}/metrics")).startswith(words)


async def test_a_page_has_a_longest_size(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is too long is an error: what is behind the limit could be a counter."""
    monkeypatch.setattr(readings, "LONGEST_PAGE", len(PAGE) - 1)
    host, port = await start_bad(nursery, answers(PAGE, len(PAGE)))
    assert await why(f"http://{host}:{port}/metrics") == f"longer than {len(PAGE) - 1} bytes"


def test_the_password_is_not_shown() -> None:
    """The repr of an access has no password."""
    access = Access("ada", PASSWORD, ssl.create_default_context())
    assert "ada" in repr(access)
    assert PASSWORD not in f"{access} {access!r}"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:45001", "http://localhost:45001/metrics"),
        ("[::1]:45001", "http://[::1]:45001/metrics"),
        ("https://time.example/", "https://time.example/metrics"),
        ("https://time.example/m?a=1#b", "https://time.example/m?a=1"),
    ],
)
def test_an_address_is_completed(text: str, url: str) -> None:
    """HOST:PORT means http and /metrics."""
    assert metrics_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", ":45001", "ftp://a", "a:x", "a:70000", "a:0", "[::1", "a b", "a\x1b:1", "http://", "file:///x"],
)
def test_a_wrong_address_says_what_is_right(text: str) -> None:
    """An address that cannot be read is refused, before the load begins."""
    with pytest.raises(ValueError, match=r"^HOST:PORT or a URL such as http://HOST:45001/metrics$"):
        metrics_url(text)
