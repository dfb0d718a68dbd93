"""The client `ask`: answers, and the error for each way in which a request fails."""

import ssl
import time
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from operator import add
from typing import Any

import pytest
import trio

import triojam
from tests.helpers.bad_servers import (
    JAM,
    Behaviour,
    closes_at_once,
    resets_at_once,
    says,
    silent,
    start_bad,
    tells,
)
from tests.helpers.resolver import Resolver
from tests.helpers.servers import NOW, PATIENCE, settings_for_test, start_tcp, start_tls, trusting
from triojam.client.ask import AskOptions
from triojam.client.render import format_offset, render
from triojam.client.session import DEFAULT_PORT, Target, certified_name
from triojam.client.time_of_day import fold, second_of_day


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("time.example.org", "time.example.org", 45000),
        ("192.0.2.1:4500", "192.0.2.1", 4500),
        ("::1", "::1", 45000),
        ("[fe80::1%eth0]:7", "fe80::1%eth0", 7),
        ("[::1]", "::1", 45000),
    ],
)
def test_an_address_is_parsed(text: str, host: str, port: int) -> None:
    """A server may be a host name or an IP address, with or without a port."""
    assert Target.parse(text) == Target(host, port)


@pytest.mark.parametrize(
    "text", ["", ":45000", "host:", "host:0", "host:65536", "[::1", "http://host", "a b", "[]:1"]
)
def test_a_bad_address_is_refused(text: str) -> None:
    """The error says what is expected."""
    with pytest.raises(ValueError, match="HOST or HOST:PORT"):
        Target.parse(text)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("fe80::1%eth0:45000", r"\[fe80::1%eth0\]:45000"),
        ("fe80::1%eth0:7", r"\[fe80::1%eth0\]:7"),
        ("fe80::1%eth0:x", r"\[fe80::1%eth0\]:45000"),
        ("45000", "HOST or HOST:PORT, as in 127.0.0.1:45000"),
        ("0", "HOST or HOST:PORT, as in 127.0.0.1:45000"),
        ("9" * 5000, "HOST or HOST:PORT, as in 127.0.0.1:45000"),
    ],
)
def test_an_ambiguous_address_is_refused_with_the_right_form(text: str, right: str) -> None:
    """A zone with a port in it and a number without a host are mistakes."""
    with pytest.raises(ValueError, match=right):
        Target.parse(text)


def test_the_default_port_is_the_servers() -> None:
    """Client and server have the same default port."""
    assert triojam.Settings().port == DEFAULT_PORT


async def test_an_answer_has_time_offset_and_address(nursery: trio.Nursery) -> None:
    """The offset is right within its bound, which depends on the round trip."""
    server = await start_tcp(nursery)
    assert server.server is not None
    host, port = server.server.addresses[0]
    answer = await triojam.ask(str(host), int(port), now=lambda: NOW + 3, zone=UTC)
    assert answer.time == "12:34:56"
    assert answer.address == f"127.0.0.1:{port}"
    assert abs(answer.offset - -3) <= answer.bound
    assert 0.5 <= answer.bound == 0.5 + answer.round_trip / 2


@pytest.mark.parametrize("ahead", [-40_000.0, -0.75, 0.0, 0.3, 12.0, 43_000.0])
async def test_the_true_offset_is_within_the_bound(nursery: trio.Nursery, ahead: float) -> None:
    """The bound holds for any offset, across midnight too."""
    for wall in (1_700_006_399.9, 1_700_051_696.25):  # the first is just before midnight
        address = await start_bad(nursery, tells(partial(add, wall, ahead)))
        answer = await triojam.ask(*address, now=partial(add, wall, 0.0), zone=UTC)
        assert abs(answer.offset - ahead) <= answer.bound


async def test_the_zone_of_the_answers_can_be_given(nursery: trio.Nursery) -> None:
    """The offset of a server in another time zone is right if the client knows the zone."""
    east = timezone(timedelta(hours=7))
    local = time.time() + 7 * 3600
    address = await start_bad(nursery, tells(lambda: local))
    for zone, offset in ((east, 0), (UTC, 7 * 3600)):
        answer = await triojam.ask(*address, now=lambda: local - 7 * 3600, zone=zone)
        assert abs(answer.offset - offset) < 1


BAD: list[tuple[Behaviour, type[triojam.AskError], str]] = [
    (silent, triojam.SilentError, "said nothing for 0.2 s without an answer"),
    (says(b"JAM 12:3"), triojam.SilentError, "said nothing for 0.2 s after part of an answer, 'JAM 12:3'"),
    (closes_at_once, triojam.ClosedError, "closed the connection without an answer|reset the connection"),
    (resets_at_once, triojam.ClosedError, "reset the connection"),
    (says(b"JAM 12:3", then_closes=True), triojam.ClosedError, "after part of an answer, 'JAM 12:3'"),
    (tells(time.time, resets_every=1), triojam.ClosedError, "reset the connection"),
    (
        says(b"JAM 24:00:00\r\n"),
        triojam.WrongTimeError,
        "answered with 'JAM 24:00:00', which is no time of day",
    ),
    (says(b"JAM 12:34:56\n"), triojam.StrangerError, r"answered with something else: 'JAM 12:34:56\\n'"),
    (says(b"hello\x1b[31m\r\n"), triojam.StrangerError, r"answered with something else: 'hello\\x1b\[31m'"),
    (says(b"x" * 600), triojam.StrangerError, "answered with something else: 'xxxxx"),
    (says(b"ERROR busy: later\r\n"), triojam.RefusedError, "answered with 'ERROR busy: later'"),
    (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), triojam.StrangerError, "speaks HTTP"),
    (says(b"\x15\x03\x01\x00\x02\x02\n"), triojam.StrangerError, "speaks TLS"),
]


@pytest.mark.parametrize(("behaviour", "kind", "words"), BAD)
async def test_a_bad_server_has_an_error_of_its_own(
    nursery: trio.Nursery, behaviour: Behaviour, kind: type[triojam.AskError], words: str
) -> None:
    """Each fault of a server has an error type and a message."""
    address = await start_bad(nursery, behaviour)
    with pytest.raises(kind, match=words):
        await triojam.ask(*address, patience=0.2)


async def test_the_metrics_port_is_recognized(nursery: trio.Nursery) -> None:
    """The metrics port refuses a request line without HTTP at once, and the client knows it by that."""
    server: triojam.Server = await nursery.start(triojam.serve, settings_for_test(metrics_port=0))
    with trio.fail_after(PATIENCE):
        for precise in (False, True):
            options = AskOptions(precise=precise, patience=10 * PATIENCE)
            outcome = await options.ask(Target(*server.metrics_addresses[0]))
            assert isinstance(outcome, triojam.StrangerError)
            assert str(outcome) == "speaks HTTP, not TIME: is it the metrics port?"


async def test_a_tls_port_is_recognized_in_clear(nursery: trio.Nursery) -> None:
    """A port that closes a connection in clear, and does a TLS handshake, speaks TLS; so does an alert."""
    server = await start_tls(nursery)
    assert server.server is not None
    alerts = says(b"\x15\x03\x01\x00\x02\x02\x46")
    for address in (server.server.tls_addresses[0], await start_bad(nursery, alerts)):
        outcome = await AskOptions(patience=10 * PATIENCE).ask(Target(*address))
        assert isinstance(outcome, triojam.StrangerError)
        assert str(outcome) == "speaks TLS: try it with --tls"


@pytest.mark.parametrize("precise", [False, True])
async def test_a_slow_server_gets_the_requests_alone(nursery: trio.Nursery, precise: bool) -> None:  # noqa: FBT001  # a parameter
    """A server that answers late is asked as any other: the client adds nothing to its requests."""
    lines: list[bytes] = []

    async def slow(stream: trio.abc.Stream) -> None:
        async for data in stream:
            for line in data.splitlines(keepends=True):
                if not lines:
                    await trio.sleep(0.7)
                lines.append(bytes(line))
                now = time.gmtime(time.time())  # without it, of the last tick
                await stream.send_all(JAM % (now.tm_hour, now.tm_min, now.tm_sec))

    options = AskOptions(precise=precise, patience=PATIENCE, zone=UTC)
    outcome = await options.ask(Target(*await start_bad(nursery, slow)))
    assert isinstance(outcome, triojam.Answer)
    assert abs(outcome.offset) <= outcome.bound
    assert set(lines) == {b"TIME\r\n"}


async def test_an_unreachable_server_is_an_error() -> None:
    """The error for a closed port or a bad name has a reason."""
    (free,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = free.socket.getsockname()[1]
    await free.aclose()
    with pytest.raises(triojam.UnreachableError, match=r"^connection refused$"):
        await triojam.ask("127.0.0.1", port)
    for name in ("no such name.invalid", "x" * 64):
        with pytest.raises(triojam.UnreachableError, match=r"\w"):
            await triojam.ask(name)


async def test_the_next_address_of_a_name_is_tried(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the first address of a name refuses, the client asks the next one."""
    _, port = await start_bad(nursery, tells(time.time))

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_args: object, **_more: object) -> Any:
            kind = trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, ""
            return [(*kind, ("127.0.0.2", 1)), (*kind, ("127.0.0.1", port))]

        async def getnameinfo(self, *_args: object, **_more: object) -> tuple[str, str]:
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(Resolver())
    assert (await triojam.ask("time.example.org", port)).address == f"127.0.0.1:{port}"


async def test_tls_needs_a_trusted_certificate(nursery: trio.Nursery) -> None:
    """Over TLS, a certificate that is not trusted and a server without TLS are errors."""
    server = await start_tls(nursery)
    assert server.server is not None
    port = int(server.server.tls_addresses[0][1])
    assert (await triojam.ask("localhost", port, tls=trusting())).time == "12:34:56"
    with pytest.raises(triojam.UntrustedError, match="its certificate is not trusted"):
        await triojam.ask("localhost", port, tls=ssl.create_default_context())
    with pytest.raises(triojam.StrangerError, match="does not speak TLS"):
        await triojam.ask(*await start_bad(nursery, says(b"ERROR bad_terminator: x\r\n")), tls=trusting())


async def test_the_name_in_tls_has_no_dot_at_its_end(nursery: trio.Nursery) -> None:
    """The name of the certificate, and of SNI, is without the dot of the root (RFC 6066, section 3)."""
    server = await start_tls(nursery)
    assert server.server is not None
    port = int(server.server.tls_addresses[0][1])
    trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.1"))
    assert (await triojam.ask("localhost.", port, tls=trusting())).time == "12:34:56"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("time.example.org.", "time.example.org"),
        ("time.example.org", "time.example.org"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_a_certificate_knows_neither_dot_nor_zone(host: str, name: str) -> None:
    """A name ends without a dot, and an address without its interface."""
    assert certified_name(host) == name


def test_the_second_of_the_day_depends_on_the_zone() -> None:
    """It is the time on a clock in the zone, with its fraction."""
    moment = datetime(2026, 3, 29, 23, 59, 59, 500_000, tzinfo=UTC).timestamp()
    assert second_of_day(moment, UTC) == 86_399.5
    assert second_of_day(moment, timezone(timedelta(hours=-3, minutes=-30))) == 86_399.5 - 3.5 * 3600


@pytest.mark.parametrize(
    ("seconds", "folded"), [(0, 0), (86_399, -1), (-86_399, 1), (43_199, 43_199), (130_000, 43_600)]
)
def test_a_difference_is_folded_to_half_a_day(seconds: float, folded: float) -> None:
    """A difference of two times of day is between -12 and +12 hours."""
    assert fold(seconds) == (folded if folded < 43_200 else folded - 86_400)


@pytest.mark.parametrize(
    ("offset", "bound", "shown"),
    [
        (0.26, 0.5001, "agrees within ± 0.51 s"),
        (0.0, 0.5045, "agrees within ± 0.51 s"),
        (-0.51, 0.5001, "-0.51 s ± 0.51 s"),
        (-12.0, 0.5, "-12.00 s ± 0.50 s"),
        (-0.0000004, 0.0002, "+0.00 ms ± 0.21 ms"),
        (3.0001234, 0.00026, "+3.00012 s ± 0.00027 s"),
        (17_999.57, 0.5001, "+5 h -0.43 s ± 0.51 s"),
        (-12_600.0, 0.5, "-3 h 30 min +0.00 s ± 0.50 s"),
        (901.0, 0.5, "+15 min +1.00 s ± 0.50 s"),
        (950.0, 0.5, "+950.00 s ± 0.50 s"),
        (20_700.000125, 0.0002, "+5 h 45 min +0.12 ms ± 0.21 ms"),
    ],
)
def test_the_shown_bound_holds(offset: float, bound: float, shown: str) -> None:
    """The printed range contains the exact range, in the words that fit."""
    assert format_offset(offset, bound) == shown


def test_a_time_zone_is_named() -> None:
    """An offset of whole quarters of an hour is shown as another time zone, with the option for it."""
    server = [Target("a"), Target("b")]
    answers = [
        triojam.Answer("17:00:00", offset, 0.5, 0.001, "192.0.2.1:45000") for offset in (17_999.57, 0.1)
    ]
    far, near = render(server, answers).splitlines()
    assert far.endswith("192.0.2.1:45000  another time zone: see --timezone")
    assert near.endswith("192.0.2.1:45000")
