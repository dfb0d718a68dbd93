"""Admission: the decisions alone, and servers that follow them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Start
from tests.helpers.program import serving
from tests.helpers.servers import (
    JAM,
    Running,
    assert_answered,
    receive_all,
    receive_exactly,
    start_lane,
    until,
)
from triojam.core.admission import ANYONE, MOST_SOURCES, Admission, Policy, parse_networks
from triojam.core.protocol import REFUSALS, Rules
from triojam.core.reasons import Disconnect, HandoverCause, Refusal, Rejection
from triojam.settings.fields import SettingError, Settings

RATE_LIMITED = Rules().error_line(Rejection.RATE_LIMITED)
PER_SOURCE = REFUSALS[Refusal.PER_SOURCE]


def make_admission(*, allow: str = "", deny: str = "", **limits: Any) -> Admission:
    """Make an admission from networks as an operator writes them."""
    return Admission(Policy(allow=parse_networks(allow), deny=parse_networks(deny), **limits))


@pytest.mark.parametrize(
    ("allow", "deny", "host", "refusal"),
    [
        ("", "", "192.0.2.1", None),
        ("", "192.0.2.0/24", "192.0.2.1", Refusal.DENIED),
        ("", "192.0.2.0/24", "192.0.3.1", None),
        ("192.0.2.0/24", "", "192.0.2.255", None),
        ("192.0.2.0/24", "", "192.0.3.1", Refusal.DENIED),
        ("192.0.2.0/24", "", "2001:db8::1", Refusal.DENIED),
        ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", Refusal.DENIED),
        ("10.0.0.0/8, 10.1.2.0/24", "10.1.0.0/16", "10.1.2.3", None),
        ("10.1.2.3", "0.0.0.0/0", "10.1.2.3", None),
        ("", "0.0.0.0/0", "10.1.2.3", Refusal.DENIED),
        ("", "0.0.0.0/0", "::1", None),
        ("", "2001:db8::/32", "2001:db8:1::1", Refusal.DENIED),
        ("", "fe80::/10", "fe80::1%eth0", Refusal.DENIED),
        ("", "192.0.2.0/24", "::ffff:192.0.2.1", Refusal.DENIED),
        ("", "::ffff:192.0.2.0/120", "192.0.2.1", Refusal.DENIED),
    ],
)
def test_the_longest_network_decides(allow: str, deny: str, host: str, refusal: Refusal | None) -> None:
    """The longest network that contains an address decides; if some are allowed, all others are denied."""
    assert make_admission(allow=allow, deny=deny).refusal(host, full=False) == refusal


@pytest.mark.parametrize(
    ("proxies", "host", "is_one"),
    [
        ("", "192.0.2.1", False),
        ("192.0.2.0/24", "192.0.2.1", True),
        ("192.0.2.0/24", "192.0.3.1", False),
        ("192.0.2.0/24", "::ffff:192.0.2.1", True),
        ("192.0.2.0/24", "2001:db8::1", False),
        ("2001:db8::/32, ::1", "::1", True),
        ("fe80::/10", "fe80::1%eth0", True),
        ("0.0.0.0/0", "not an address", False),
    ],
)
def test_a_proxy_is_an_address_in_its_networks(proxies: str, host: str, *, is_one: bool) -> None:
    """An address inside the networks of proxies is a proxy, and no other is."""
    admission = Admission(Policy(proxies=parse_networks(proxies)))
    assert admission.is_proxy(host) == is_one
    admission.set_policy(Policy())
    assert not admission.is_proxy(host)


def test_connections_are_counted_by_source() -> None:
    """A source over its limit is refused, another source is not; a connection that ends makes room."""
    admission = make_admission(connections_per_source=2)
    first = [admission.enter("192.0.2.1") for _ in range(2)]
    assert admission.refusal("192.0.2.1", full=False) is Refusal.PER_SOURCE
    assert admission.refusal("192.0.2.2", full=False) is None
    admission.leave(first[0])
    assert admission.refusal("192.0.2.1", full=False) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_64(one: str, other: str, *, same: bool) -> None:
    """An IPv4 address is a source, IPv4-mapped or not, and so is an IPv6 /64."""
    admission = make_admission(connections_per_source=1)
    assert (admission.enter(one) is admission.enter(other)) == same


def test_a_source_has_its_burst_then_its_rate() -> None:
    """A source may use its burst at once; then a token comes back each interval, up to the burst."""
    admission = make_admission(rate_per_source=2.0, burst_per_source=3)
    source = admission.enter("192.0.2.1")
    at_once = [admission.take(source, 100.0) for _ in range(4)]
    later = [admission.take(source, now) for now in (100.4, 100.5, 100.6, 101.0)]
    much_later = [admission.take(source, 1000.0) for _ in range(4)]
    assert at_once == [True, True, True, False]
    assert later == [False, True, False, True]
    assert much_later == [True, True, True, False]


def test_tokens_are_taken_together_or_not_at_all() -> None:
    """A batch of requests takes a token for each request, or none if there are too few."""
    admission = make_admission(rate_per_source=1.0, burst_per_source=3)
    source = admission.enter("192.0.2.1")
    assert admission.beyond_rate([(7, 4)], {7: source}, 5.0)
    assert not admission.beyond_rate([(7, 3)], {7: source}, 5.0)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 4)), max_size=50),
    st.floats(0.1, 50),
    st.integers(1, 10),
)
def test_a_bucket_permits_what_counted_tokens_permit(
    asks: list[tuple[float, int]], rate: float, burst: int
) -> None:
    """At any moments, the bucket permits the same requests as a model with counted tokens."""
    admission = make_admission(rate_per_source=rate, burst_per_source=burst)
    source = admission.enter("192.0.2.1")
    now, tokens = 1000.0, float(burst)
    for pause, requests in asks:
        now += pause
        tokens = min(burst, tokens + pause * rate)
        if abs(tokens - requests) < 1e-3:  # rounding decides
            return
        taken = not admission.beyond_rate([(7, requests)], {7: source}, now)
        assert taken == (tokens > requests)
        tokens -= requests * taken


def test_the_table_of_sources_is_bounded() -> None:
    """A million IPv6 sources leave a full table, and the others are counted as evicted."""
    admission = make_admission(rate_per_source=1.0)
    for number in range(1_000_000):
        admission.leave(admission.enter(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1"))
    assert len(admission._sources) == MOST_SOURCES
    assert admission.evictions == 1_000_000 - MOST_SOURCES


def host(number: int) -> str:
    """Return an address of its own for each number."""
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def test_the_least_recently_used_source_is_forgotten() -> None:
    """A source that comes again is kept; one that does not is forgotten, with its bucket."""
    admission = make_admission(rate_per_source=1.0, burst_per_source=1)
    old, kept = admission.enter("192.0.2.1"), admission.enter("192.0.2.2")
    for source in (old, kept):
        assert admission.take(source, 0.0)
        admission.leave(source)
    for number in range(MOST_SOURCES):  # with the two above, more than the table has room for
        admission.leave(admission.enter("192.0.2.2"))
        admission.leave(admission.enter(host(number)))
    assert admission.enter("192.0.2.2") is kept
    assert admission.enter("192.0.2.1") is not old


def test_a_source_with_open_connections_is_not_forgotten() -> None:
    """A source with an open connection is kept, although many other sources come."""
    admission = make_admission(connections_per_source=1)
    admission.enter("192.0.2.1")
    for number in [*range(MOST_SOURCES)] * 2:
        admission.leave(admission.enter(host(number)))
    assert admission.refusal("192.0.2.1", full=False) is Refusal.PER_SOURCE


def test_a_table_full_of_open_connections_is_bounded() -> None:
    """If every source has an open connection, one of them is forgotten; its connection may end later."""
    admission = make_admission(connections_per_source=1)
    sources = [admission.enter(host(number)) for number in range(MOST_SOURCES + 100)]
    assert len(admission._sources) == MOST_SOURCES
    for source in sources:
        admission.leave(source)
    assert {source.connections for source in sources} == {0}


def test_without_limits_by_source_there_is_no_table() -> None:
    """Without limits by source, no source is added, and only sources with open connections stay."""
    admission = make_admission(deny="192.0.2.0/24")
    assert admission.enter("10.0.0.1") is ANYONE
    admission.set_policy(Policy(rate_per_source=1.0))
    gone, there = admission.enter("10.0.0.1"), admission.enter("10.0.0.2")
    admission.leave(gone)
    admission.set_policy(Policy())
    assert list(admission._sources.values()) == [there]


def test_a_network_in_both_lists_is_an_error() -> None:
    """A network that is allowed and denied is an invalid setting."""
    with pytest.raises(SettingError, match="for deny: expected networks"):
        Settings(allow="10.0.0.0/8, 192.0.2.0/24", deny="192.0.2.0/24")


async def test_a_denied_client_is_closed_without_a_reply(start_socket: Start) -> None:
    """A client of a denied network is closed without a reply, and counted."""
    server = await start_socket(deny="127.0.0.0/8")
    with trio.fail_after(20):
        assert await server.refuses(b"")
    assert server.counters.connections_rejected[Refusal.DENIED] == 1
    assert server.counters.connections_open == 0


async def test_a_source_beyond_its_connections_is_refused(start_socket: Start) -> None:
    """A connection beyond the limit of its source is refused; others go on; another source is admitted."""
    server = await start_socket(connections_per_source=2)
    inside = [await server.connect() for _ in range(2)]
    await until(lambda: server.counters.connections_open == 2)
    assert await server.refuses(PER_SOURCE)
    for client in inside:
        await assert_answered(client)
    assert await ask_from("127.0.0.2", server) == JAM
    assert server.counters.connections_rejected[Refusal.PER_SOURCE] == 1
    await inside[0].aclose()
    await until(lambda: server.counters.connections_open == 1)
    assert await server.ask(b"TIME\r\n") == JAM


async def ask_from(host: str, server: Running) -> bytes:
    """Ask once from another address of this machine."""
    assert server.server is not None
    address, port = server.server.addresses[0]
    stream = await trio.open_tcp_stream(address, port, local_address=host)
    async with stream:
        await stream.send_all(b"TIME\r\n")
        await stream.send_eof()
        return await receive_all(stream)


async def test_a_source_beyond_its_rate_gets_errors(start_socket: Start) -> None:
    """Each request beyond the burst gets an error; another source gets its answers."""
    server = await start_socket(rate_per_source=0.001, burst_per_source=3)
    assert await server.ask(b"TIME\r\n" * 5) == JAM * 3 + RATE_LIMITED * 2
    assert await server.ask(b"TIME\r\n") == RATE_LIMITED
    assert await ask_from("127.0.0.2", server) == JAM
    assert server.counters.rejected[Rejection.RATE_LIMITED] == 3


@pytest.mark.parametrize("line", [b"HELLO\r\n", b"TIME\n", b"TIMEX\r\n"])
async def test_every_line_takes_a_token(start_socket: Start, line: bytes) -> None:
    """A rejected line takes a token, too; QUIT takes none."""
    server = await start_socket(rate_per_source=0.001, burst_per_source=1)
    answers = await server.ask(line + b"TIME\r\nQUIT\r\n")
    assert answers.endswith(RATE_LIMITED)
    assert not answers.startswith(RATE_LIMITED)
    await until(lambda: server.counters.disconnects[Disconnect.QUIT] == 1)


async def test_a_line_in_pieces_takes_a_token_when_it_is_whole(start_socket: Start) -> None:
    """The last piece of a line takes the token."""
    server = await start_socket(rate_per_source=0.001, burst_per_source=1)
    client = await server.connect()
    await assert_answered(client, b"TIME\r\nTI")
    await until(server.midline)
    await assert_answered(client, b"ME\r\n", RATE_LIMITED)
    assert server.counters.request_receive.count == 1


async def test_a_client_within_its_rate_is_not_handed_over(start_socket: Start) -> None:
    """A client within its rate stays in the lane."""
    server = await start_socket(rate_per_source=1_000_000, burst_per_source=100, connections_per_source=100)
    assert await server.ask(b"TIME\r\n" * 50) == JAM * 50
    assert sum(server.counters.handovers.values()) == 0


async def test_new_limits_apply_to_open_connections(start_socket: Start) -> None:
    """Connections that were open before a limit was set are counted and limited like others."""
    server = await start_socket()
    client = await server.connect()
    await assert_answered(client)
    server.reload(connections_per_source=1, rate_per_source=0.001, burst_per_source=1)
    assert await server.refuses(PER_SOURCE)
    await assert_answered(client, b"TIME\r\n" * 2, JAM + RATE_LIMITED)
    await client.aclose()
    await until(lambda: server.counters.connections_open == 0)
    server.reload(connections_per_source=0, rate_per_source=0.0, deny="127.0.0.1")
    assert await server.refuses(b"")


async def test_a_new_limit_counts_clients_that_are_handed_over(nursery: trio.Nursery) -> None:
    """A client on the way from the lane to the handler is counted when a limit is set."""
    server = await start_lane(nursery)
    assert server.lane is not None
    await server.connect()
    await until(lambda: server.counters.connections_open == 1)
    server.lane._hand_over(next(iter(server.lane._active)), HandoverCause.LINE)
    server.reload(connections_per_source=1)
    server.lane._wake()
    assert await server.ask(b"", end=False) == PER_SOURCE
    await server.close_clients()
    nursery.cancel_scope.cancel()


async def test_a_line_that_begins_behind_rejected_requests_is_kept(start_socket: Start) -> None:
    """The first bytes of a line behind requests beyond the rate are not lost."""
    server = await start_socket(rate_per_source=0.001, burst_per_source=1)
    client = await server.connect()
    await assert_answered(client, b"TIME\r\n" * 2 + b"TI", JAM + RATE_LIMITED)
    await until(server.midline)
    server.reload(rate_per_source=0.0)
    await assert_answered(client, b"ME\r\n")


@pytest.mark.parametrize("sent", [b"TIME\r\n", b"HELLO\r\n"], ids=["in the lane", "in the handler"])
@pytest.mark.parametrize("limits", [(0, 1), (1, 0, 1)], ids=["new", "set again"])
async def test_a_limit_counts_connections_that_are_open(
    start_socket: Start, sent: bytes, limits: tuple[int, ...]
) -> None:
    """Connections that are open when a limit is set, or set again, are counted, until they end."""
    server = await start_socket(connections_per_source=limits[0])
    client = await server.connect()
    await client.send_all(sent)
    await receive_exactly(client, 5)
    for limit in limits[1:]:
        server.reload(connections_per_source=limit)
    assert await server.refuses(PER_SOURCE)
    await client.aclose()
    await until(lambda: server.counters.connections_open == 0)
    assert await server.ask(b"TIME\r\n") == JAM


@pytest.mark.parametrize("host", ["192.0.2.1", "::ffff:192.0.2.1"])
def test_an_own_address_admits_one_connection(host: str) -> None:
    """The address of the server's own client, in each form, is known for one connection; not its host."""
    admission = Admission(Policy())
    admission.own.add(("192.0.2.1", 50_000))
    assert not admission.enter_own((host, 50_001))
    assert not admission.enter_own(("192.0.2.2", 50_000))
    assert admission.enter_own((host, 50_000))
    assert not admission.enter_own((host, 50_000))
    assert admission.itself.connections == 1
    admission.leave(admission.itself)
    assert admission.itself.connections == 0


async def test_the_servers_own_client_is_always_admitted(start_socket: Start) -> None:
    """The server's own client is answered, whatever the policy and the limits say."""
    server = await start_socket(
        max_connections=1, connections_per_source=1, rate_per_source=0.001, burst_per_source=1
    )
    assert await server.ask(b"TIME\r\n") == JAM
    await until(lambda: server.counters.connections_open == 0)
    await server.connect()
    await until(lambda: server.counters.connections_open == 1)
    assert server.server is not None
    server.reload(deny="127.0.0.0/8")
    with trio.socket.socket() as probe:
        await probe.bind(("127.0.0.1", 0))
        server.server._service.admission.own.add(probe.getsockname())
        await probe.connect(server.server.addresses[0])
        await probe.send(b"TIME\r\n")
        assert await probe.recv(100) == JAM


async def test_the_settings_file_may_have_an_array_of_networks(tmp_path: Path) -> None:
    """In the file, networks may be an array; the metrics count the refused client."""
    file = tmp_path / "triojam.toml"
    file.write_text('allow = ["192.0.2.0/24", "2001:db8::/32"]\n')
    async with serving("--config", str(file)) as program:
        async with await program.connect() as client:
            with suppress(trio.BrokenResourceError):
                assert await receive_all(client) == b""
        seen = await program.scrape()
        assert seen.total("triojam_connections_rejected_total", reason="denied") == 1
