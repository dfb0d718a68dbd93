"""Clients behind a proxy: the PROXY header names each of them, on each path and before TLS."""

import socket
import time
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Start
from tests.helpers.invariants import good_client
from tests.helpers.proxy_headers import BAD_HEADERS, GOOD_HEADERS, LOCAL, header_for
from tests.helpers.relays import (
    PROXY,
    connect_now,
    connect_relayed,
    is_closed_without_reply,
    relay,
    relay_header,
    send_now,
    shake_hands,
)
from tests.helpers.servers import (
    JAM,
    PATIENCE,
    Running,
    assert_answered,
    receive_all,
    receive_exactly,
    reset_on_close,
    until,
)
from triojam.core.protocol import REFUSALS, Rules
from triojam.core.reasons import Disconnect, HandoverCause, Refusal, Rejection
from triojam.serving.newcomers import Relayed

CLIENT, OTHER = "192.0.2.7", "192.0.2.8"
PER_SOURCE, BUSY = REFUSALS[Refusal.PER_SOURCE], REFUSALS[Refusal.BUSY]
RATE_LIMITED = Rules().error_line(Rejection.RATE_LIMITED)
LONGEST, _ = GOOD_HEADERS["v2 longest"]
# Whether the header is there at the accept, or comes later in pieces.
AT_THE_ACCEPT_OR_LATE = pytest.mark.parametrize("late", [False, True], ids=["whole", "late"])


def bad_headers(server: Running) -> int:
    """Return how many connections were refused for their header."""
    return server.counters.connections_rejected[Refusal.PROXY_HEADER]


@AT_THE_ACCEPT_OR_LATE
@pytest.mark.parametrize("header", [data for data, _ in GOOD_HEADERS.values()], ids=GOOD_HEADERS)
async def test_a_client_is_answered_behind_any_good_header(
    start_plain: Start, header: bytes, *, late: bool
) -> None:
    """Each good header is taken away, and the requests in the same segment are answered."""
    server = await start_plain(proxies=PROXY)
    client = await connect_relayed(server, header + b"TIME\r\nTI", late=late)
    async with client:
        assert await receive_exactly(client, len(JAM)) == JAM
        await assert_answered(client, b"ME\r\n")
    assert bad_headers(server) == 0


@AT_THE_ACCEPT_OR_LATE
@pytest.mark.parametrize("version", [1, 2])
async def test_a_client_is_answered_on_each_path(start_socket: Start, version: int, *, late: bool) -> None:
    """A client behind a proxy is answered on each path, also before and after TLS."""
    server = await start_socket(proxies=PROXY)
    relay(server, CLIENT, version=version, late=late)
    assert await server.ask(b"TIME\r\n" * 3) == JAM * 3
    in_lane = server.lane is not None and not late
    assert server.counters.handovers[HandoverCause.HEADER] == (server.lane is not None and late)
    assert in_lane or server.counters.disconnects[Disconnect.EOF] == 1


@pytest.mark.parametrize("header", [header_for(CLIENT), header_for("2001:db8::1", version=1), LOCAL])
async def test_a_header_may_be_cut_anywhere(start_plain: Start, header: bytes) -> None:
    """A header that comes byte by byte gives the same client."""
    server = await start_plain(proxies=PROXY)
    async with connect_now(server) as client:
        for start, stop in pairwise(range(len(header) + 1)):
            await client.send_all(header[start:stop])
            await trio.testing.wait_all_tasks_blocked()
        await assert_answered(client)


@pytest.mark.parametrize("data", BAD_HEADERS.values(), ids=BAD_HEADERS)
async def test_a_bad_header_ends_the_connection(start_socket: Start, data: bytes) -> None:
    """A bad header, whole or in pieces: closed without a reply, counted, and no request."""
    server = await start_socket(proxies=PROXY)
    async with connect_now(server, data + b"TIME\r\n") as client:
        assert await is_closed_without_reply(client)
    async with connect_now(server) as client:
        await until(lambda: server.counters.connections_open == 1)
        await client.send_all(data)
        assert await is_closed_without_reply(client)
    await until(lambda: server.counters.connections_open == 0)
    assert bad_headers(server) == server.counters.connections == 2
    assert server.counters.requests == 0
    assert [event["level"] for event in server.events.named("bad PROXY header")] == ["debug"] * 2


@pytest.mark.parametrize("begun", [b"", LONGEST[:20], b"PROXY TCP4 "])
async def test_a_header_has_the_time_of_a_line(start_socket: Start, begun: bytes) -> None:
    """CVE-2021-23409: a header that does not come in time ends the connection; its pieces extend nothing."""
    server = await start_socket(proxies=PROXY, line_timeout=0.3)
    async with connect_now(server, begun) as client, trio.open_nursery() as nursery:

        async def drip() -> None:
            for byte in LONGEST[20:]:
                await trio.sleep(0.1)
                await client.send_all(bytes([byte]))

        if begun == LONGEST[:20]:
            nursery.start_soon(drip)
        assert await is_closed_without_reply(client)
        nursery.cancel_scope.cancel()
    assert bad_headers(server) == 1


@pytest.mark.parametrize("begun", [b"", LOCAL[:5]])
@pytest.mark.parametrize("reset", [False, True])
@AT_THE_ACCEPT_OR_LATE
async def test_a_connection_that_ends_before_its_header_is_counted(
    start_socket: Start, begun: bytes, *, reset: bool, late: bool
) -> None:
    """A stream that ends before its header is refused as without one; a broken connection is a reset."""
    server = await start_socket(proxies=PROXY)
    async with connect_now(server, begun) as client:
        if late:
            await until(lambda: server.counters.connections_open == 1)
        if reset:
            reset_on_close(client)
    await until(lambda: server.counters.connections == 1 and server.counters.connections_open == 0)
    assert bad_headers(server) == (not reset)
    assert server.counters.disconnects[Disconnect.RESET] == reset


@pytest.mark.parametrize("version", [1, 2])
async def test_a_header_from_outside_is_a_line(start_plain: Start, version: int) -> None:
    """The bytes of a peer outside of `proxies` are lines, whatever they look like; its address is its own."""
    server = await start_plain(proxies="127.0.0.2")
    header = header_for(CLIENT, version=version)
    async with connect_now(server, header + b"\r\nTIME\r\nQUIT\r\n") as client:
        answers = await receive_all(client)
    assert answers.startswith(b"ERROR ")
    assert answers.endswith(JAM)
    assert {event["peer"].split(":")[0] for event in server.events if "peer" in event} == {PROXY}


async def test_a_proxy_without_a_header_is_refused(start_plain: Start) -> None:
    """A peer inside of `proxies` is not answered without a header: nothing is guessed."""
    server = await start_plain(proxies=PROXY)
    async with connect_now(server, b"TIME\r\nQUIT\r\n") as client:
        assert await is_closed_without_reply(client)
    assert bad_headers(server) == 1


async def test_without_proxies_no_header_is_read(start_plain: Start) -> None:
    """By default there are no proxies: a header is a bad line of the peer itself."""
    server = await start_plain()
    async with connect_now(server, header_for(CLIENT, version=1) + b"QUIT\r\n") as client:
        assert await receive_all(client) == Rules().error_line(Rejection.BAD_COMMAND)


@AT_THE_ACCEPT_OR_LATE
async def test_networks_hold_for_the_client(start_socket: Start, *, late: bool) -> None:
    """The client's address is allowed or denied, not the proxy's."""
    server = await start_socket(proxies=PROXY, deny=f"127.0.0.0/8, {OTHER}")
    relay(server, OTHER, late=late)
    with trio.fail_after(PATIENCE):
        assert await server.refuses(b"")
    relay(server, CLIENT, late=late)
    assert await server.ask(b"TIME\r\n") == JAM
    assert server.counters.connections_rejected[Refusal.DENIED] == 1
    assert server.counters.connections == 2


@AT_THE_ACCEPT_OR_LATE
async def test_connections_are_limited_by_client(start_socket: Start, *, late: bool) -> None:
    """A client beyond its connections is refused as without a proxy; another client is answered."""
    server = await start_socket(proxies=PROXY, connections_per_source=1)
    relay(server, CLIENT, late=late)
    inside = await server.connect()
    await assert_answered(inside)
    assert await server.refuses(PER_SOURCE)
    assert server.counters.connections_rejected[Refusal.PER_SOURCE] == 1
    relay(server, OTHER, late=late)
    assert await server.ask(b"TIME\r\n") == JAM
    await inside.aclose()
    await until(lambda: server.counters.connections_open == 0)
    relay(server, CLIENT, late=late)
    assert await server.ask(b"TIME\r\n") == JAM


async def test_a_late_client_that_is_refused_gets_the_reason_despite_its_request(start_plain: Start) -> None:
    """The reason arrives although the refused client has sent a request with its header."""
    server = await start_plain(proxies=PROXY, connections_per_source=1)
    relay(server, CLIENT)
    await assert_answered(await server.connect())
    async with connect_now(server) as client:
        await until(lambda: server.counters.connections_open == 2)
        await client.send_all(header_for(CLIENT) + b"TIME\r\n" * 9)
        assert await receive_all(client) == PER_SOURCE
    assert server.counters.requests == 1


@AT_THE_ACCEPT_OR_LATE
async def test_requests_are_limited_by_client(start_socket: Start, *, late: bool) -> None:
    """Clients behind a proxy have a bucket each."""
    server = await start_socket(proxies=PROXY, rate_per_source=0.001, burst_per_source=1)
    for host in (CLIENT, OTHER):
        relay(server, host, late=late)
        assert await server.ask(b"TIME\r\n" * 2) == JAM + RATE_LIMITED


OWN = {"LOCAL": LOCAL, "UNKNOWN": b"PROXY UNKNOWN\r\n"}


@AT_THE_ACCEPT_OR_LATE
@pytest.mark.parametrize("header", OWN.values(), ids=OWN)
async def test_a_proxys_own_connection_has_no_limits(
    start_socket: Start, header: bytes, *, late: bool
) -> None:
    """A proxy's own connection is answered, and counted, whatever the lists and limits say."""
    server = await start_socket(
        proxies=PROXY, deny="127.0.0.0/8", connections_per_source=1, rate_per_source=0.001, burst_per_source=1
    )
    relay_header(server, header, late=late)
    staying = await server.connect()
    await assert_answered(staying, b"TIME\r\n" * 5, JAM * 5)
    assert await server.ask(b"TIME\r\n") == JAM
    server.reload(deny="127.0.0.1", connections_per_source=1, rate_per_source=0.002)
    await assert_answered(staying, b"TIME\r\n" * 5, JAM * 5)
    assert server.counters.responses == server.counters.requests == 11


@AT_THE_ACCEPT_OR_LATE
@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1"])
async def test_a_check_with_the_proxys_own_address_has_no_limits(
    start_plain: Start, host: str, *, late: bool
) -> None:
    """HAProxy's check of version 1 names the address of the connection itself: it is the proxy's own."""
    server = await start_plain(proxies=PROXY, deny="127.0.0.0/8")
    async with connect_now(server) as client:
        if late:
            await until(lambda: server.counters.connections_open == 1)
        port = client.socket.getsockname()[1]
        send_now(client, header_for(host, port, version=1))
        await assert_answered(client)
    relay_header(server, header_for(host, port + 1, version=1), late=late)
    assert await server.refuses(b"")


async def test_waiting_connections_count_as_connections(start_plain: Start) -> None:
    """The cap holds for connections whose header has not come; a full server tells no unknown client why."""
    server = await start_plain(proxies=PROXY, max_connections=2, deny=OTHER)
    waiting = [connect_now(server) for _ in range(2)]
    await until(lambda: server.counters.connections_open == 2)
    async with connect_now(server) as client:
        assert await is_closed_without_reply(client)
    async with connect_now(server, header_for(CLIENT)) as client:
        assert await receive_all(client) == BUSY
    async with connect_now(server, LOCAL) as client:
        assert await receive_all(client) == BUSY
    async with connect_now(server, header_for(OTHER)) as client:
        assert await is_closed_without_reply(client)
    assert server.counters.connections_rejected[Refusal.BUSY] == 3
    assert server.counters.connections_rejected[Refusal.DENIED] == 1
    for each in waiting:
        await each.send_all(header_for(CLIENT))
        await assert_answered(each)
        await each.aclose()


async def test_the_servers_own_check_needs_no_header(start_socket: Start) -> None:
    """The watchdog's request is answered, although loopback is in `proxies` and the server is full."""
    server = await start_socket(proxies="127.0.0.0/8, ::1", deny="127.0.0.0/8", max_connections=1)
    async with connect_now(server) as client:
        await until(lambda: server.counters.connections_open == 1)
        assert server.server is not None
        assert await server.server._answers_itself(PATIENCE)
        await client.send_all(LOCAL[:4])


async def test_the_log_names_the_client(start_socket: Start) -> None:
    """The debug log has the client's address, in the lane, in the handler and after a hand-over."""
    server = await start_socket(proxies=PROXY)
    for late in (False, True):
        relay(server, CLIENT, late=late)
        await server.ask(b"HELLO\r\n")
    await until(lambda: server.counters.connections_open == 0)
    peers = {event["peer"] for event in server.events if "peer" in event}
    assert peers == {f"{CLIENT}:50000"}


@AT_THE_ACCEPT_OR_LATE
@pytest.mark.parametrize("sent", [b"TIME\r\n", b"HELLO\r\n"], ids=["in the lane", "in the handler"])
async def test_a_new_limit_counts_open_connections_by_client(
    start_socket: Start, sent: bytes, *, late: bool
) -> None:
    """When a limit is set, an open connection is counted for its client, not for the proxy."""
    server = await start_socket(proxies=PROXY)
    relay(server, CLIENT, late=late)
    client = await server.connect()
    await client.send_all(sent)
    await receive_exactly(client, 5)
    server.reload(connections_per_source=1)
    assert await server.refuses(PER_SOURCE)
    relay(server, OTHER, late=late)
    assert await server.ask(b"TIME\r\n") == JAM
    relay(server, PROXY, late=late)
    assert await server.ask(b"TIME\r\n") == JAM


async def test_a_new_limit_holds_for_a_header_that_comes_later(start_plain: Start) -> None:
    """A connection without its header belongs to no source; with it, the present limits hold."""
    server = await start_plain(proxies=PROXY)
    waiting = [connect_now(server) for _ in range(2)]
    await until(lambda: server.counters.connections_open == 2)
    server.reload(connections_per_source=1)
    await waiting[0].send_all(header_for(CLIENT))
    await assert_answered(waiting[0])
    await waiting[1].send_all(header_for(CLIENT))
    assert await receive_all(waiting[1]) == PER_SOURCE
    for each in waiting:
        await each.aclose()


async def test_a_reload_changes_the_proxies(start_plain: Start) -> None:
    """A reload adds and removes proxies for new connections; open ones stay as they are."""
    server = await start_plain()
    direct = connect_now(server)
    await assert_answered(direct)
    server.reload(proxies=PROXY)
    await assert_answered(direct)
    relayed = connect_now(server, header_for(CLIENT))
    await assert_answered(relayed)
    server.reload(proxies="")
    for each in (direct, relayed, connect_now(server)):
        async with each:
            await assert_answered(each)


async def test_a_drain_waits_for_a_header_that_is_on_its_way(start_socket: Start) -> None:
    """In a drain, a header that comes at once is read, and the request behind it is answered."""
    server = await start_socket(proxies=PROXY)
    relay(server, CLIENT)
    await assert_answered(await server.connect())  # the listener accepts
    async with connect_now(server) as tcp:
        await until(lambda: server.counters.connections_open == 2)
        server.drain()
        await until(lambda: server.counters.draining)
        await tcp.send_all(header_for(CLIENT))
        await assert_answered(await shake_hands(tcp) if server.tls else tcp)


async def test_a_connection_without_a_header_does_not_hold_up_a_drain(start_socket: Start) -> None:
    """In a drain, a silent connection is closed like an idle client, long before the grace time ends."""
    server = await start_socket(proxies=PROXY, grace=10 * PATIENCE)
    async with connect_now(server) as client:
        await until(lambda: server.counters.connections_open == 1)
        server.drain()
        assert await is_closed_without_reply(client)
        with trio.fail_after(PATIENCE):
            await server.finished.wait()
    assert server.counters.disconnects[Disconnect.DRAIN] == 1
    assert bad_headers(server) == 0


async def test_a_header_that_came_during_a_standstill_is_read(start_plain: Start) -> None:
    """A header that arrives while the process stands still counts, although its time has passed."""
    server = await start_plain(proxies=PROXY, line_timeout=0.2)
    async with connect_now(server) as client:
        await until(lambda: server.counters.connections_open == 1)
        await trio.testing.wait_all_tasks_blocked()
        send_now(client, header_for(CLIENT) + b"TIME\r\n")
        time.sleep(0.5)  # noqa: ASYNC251  # the process stands still
        assert await receive_exactly(client, len(JAM)) == JAM


async def test_a_reload_gives_a_late_header_more_time(start_plain: Start) -> None:
    """A connection stays if a reload extends its time at the moment at which its wait ends."""
    server = await start_plain(proxies=PROXY, line_timeout=1000)
    async with connect_now(server) as client:
        await until(lambda: len(server.handler._clients) == 1)
        await trio.testing.wait_all_tasks_blocked()
        (waiting,) = server.handler._clients
        waiting.release()  # as a deadline of the former line_timeout does
        await trio.testing.wait_all_tasks_blocked()
        await client.send_all(header_for(CLIENT))
        await assert_answered(client)


async def test_connections_without_a_header_do_not_delay_clients(start_plain: Start) -> None:
    """While hundreds of headers are missing, a good client gets its answers; then all end in time."""
    server = await start_plain(proxies="127.0.0.2", line_timeout=1.0)

    async def connect() -> trio.SocketStream:
        return connect_now(server)

    async with good_client(connect, pause=0.01):
        crowd = [connect_now(server, LOCAL[: number % 16], "127.0.0.2") for number in range(300)]
        await until(lambda: bad_headers(server) == len(crowd))
    for client in crowd:
        await client.aclose()


def test_no_byte_behind_a_header_is_read() -> None:
    """The reader leaves every byte behind the header in the kernel, however the header is cut."""

    @given(st.sampled_from([data for data, _ in GOOD_HEADERS.values()]), st.data())
    def try_cuts(header: bytes, data: st.DataObject) -> None:
        stream = header + b"TIME\r\n"
        cuts = data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=5))
        server, proxy = socket.socketpair()
        with server, proxy:
            server.setblocking(False)  # noqa: FBT003  # the standard library's signature
            relayed = Relayed(server, ("192.0.2.99", 1))
            for start, stop in pairwise([0, *sorted(cuts), len(stream)]):
                assert relayed.waits or start >= len(header)
                proxy.send(stream[start:stop])
                assert relayed.read() == (stop >= len(header))
            assert server.recv(100) == b"TIME\r\n"

    try_cuts()
