"""Faults of clients on real sockets: floods, resets, silence. A good client is served meanwhile."""

import resource
import socket
from contextlib import suppress

import pytest
import trio

from tests.conftest import Start
from tests.helpers.invariants import good_client
from tests.helpers.scrape import scrape
from tests.helpers.servers import (
    JAM,
    PATIENCE,
    ClientEnd,
    Running,
    assert_answered,
    raw,
    receive_all,
    receive_exactly,
    reset_on_close,
    until,
)
from triojam.core.protocol import REFUSALS, Rules
from triojam.core.reasons import Disconnect, HandoverCause, Refusal, Rejection, SendError

BUSY = REFUSALS[Refusal.BUSY]
ERROR_LINES = {reason: Rules().error_line(reason) for reason in Rejection}


def reset(client: ClientEnd) -> None:
    """Close with RST."""
    reset_on_close(raw(client))
    raw(client).socket.close()


async def flood(client: ClientEnd, data: bytes) -> None:
    """Send, until the server closes."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await client.send_all(data)


def resident_bytes() -> int:
    """Return the peak of this process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def test_a_client_that_never_reads_is_cut_off(start_socket: Start) -> None:
    """A client that sends a million requests and reads nothing is cut off, and memory stays flat."""
    server = await start_socket(send_timeout=0.5)
    async with good_client(server.connect):
        client = await server.connect()
        memory = resident_bytes()
        await flood(client, b"TIME\r\n" * 1_000_000)
        await until(lambda: server.counters.disconnects[Disconnect.SEND_TIMEOUT] == 1)
        assert resident_bytes() - memory < 30_000_000
    assert server.counters.send_errors[SendError.TIMEOUT] > 0


async def test_every_whole_answer_that_the_kernel_took_is_counted(start_socket: Start) -> None:
    """If a batch of answers is cut off, the answers that the kernel took whole are responses."""
    server = await start_socket(send_timeout=0.2)
    client = await server.connect()
    await flood(client, b"TIME\r\n" * 1_000_000)
    await until(lambda: server.counters.connections_open == 0)
    received = bytearray()
    with suppress(trio.BrokenResourceError):
        async for data in client:
            received += data
    # The reset drops answers on their way; all answers that arrived are counted.
    assert len(received) // len(JAM) <= server.counters.responses
    lost = server.counters.send_errors[SendError.TIMEOUT]
    assert server.counters.responses + lost == server.counters.requests


@pytest.mark.parametrize(("pause", "settings"), [(0.1, {}), (0.6, {"line_timeout": 0.2})])
async def test_a_client_that_pauses_its_reading_gets_every_answer(
    start_socket: Start, pause: float, settings: dict[str, float]
) -> None:
    """A client that stops reading and goes on within send_timeout is answered, even after line_timeout."""
    server = await start_socket(**settings)
    client = await server.connect()
    count = 600_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"TIME\r\n" * count)
        await until(lambda: server.counters.unaccounted > 1)
        await trio.sleep(pause)  # the pause is the fault
        assert server.counters.requests < count
        received = await receive_exactly(client, count * len(JAM))
    assert received == JAM * count
    assert server.counters.rejected[Rejection.TIMEOUT] == 0
    assert server.lane is None or server.counters.handovers[HandoverCause.SEND] == 1


async def test_a_line_without_end_is_cut_off(start_socket: Start) -> None:
    """A line without end is cut off at the limit, before the client has sent it all; memory stays flat."""
    server = await start_socket()
    async with good_client(server.connect):
        client = await server.connect()
        memory = resident_bytes()
        megabyte = bytes(1_000_000)
        sent = 0
        with suppress(trio.BrokenResourceError):
            while sent < 1000:
                await client.send_all(megabyte)
                sent += 1
        assert sent < 1000
        await until(lambda: server.counters.disconnects[Disconnect.TOO_LONG] == 1)
        assert resident_bytes() - memory < 30_000_000
    assert server.counters.rejected[Rejection.TOO_LONG] == 1


async def test_the_error_line_arrives_despite_unread_input(start_socket: Start) -> None:
    """The error line about a long line arrives, although the client has sent much more than the limit."""
    server = await start_socket()
    client = await server.connect()
    await client.send_all(b"x" * 100_000)
    assert await receive_all(client) == ERROR_LINES[Rejection.TOO_LONG]
    assert await raw(client).receive_some() == b""  # over TLS, the end of TCP follows the end of TLS


async def test_slow_clients_are_closed_at_the_line_timeout(start_socket: Start) -> None:
    """Many clients that send a byte now and then are closed at the line timeout, and counted."""
    server = await start_socket(line_timeout=0.3)
    async with good_client(server.connect), trio.open_nursery() as nursery:
        slow = [await server.connect() for _ in range(100)]

        async def drip(client: trio.abc.SendStream) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while True:
                    await client.send_all(b"T")
                    await trio.sleep(0.05)

        async def read(client: ClientEnd) -> None:
            assert await receive_all(client) == ERROR_LINES[Rejection.TIMEOUT]
            await client.aclose()

        async with trio.open_nursery() as readers:  # at the same time, before a late byte causes a reset
            for client in slow:
                nursery.start_soon(drip, client)
                readers.start_soon(read, client)
    assert server.counters.rejected[Rejection.TIMEOUT] == 100


async def test_idle_connections_and_probes_log_nothing_above_debug(start_socket: Start) -> None:
    """A client that closes at once, or sends nothing, makes no request and no log line above debug."""
    server = await start_socket(idle_timeout=0.1)
    for _ in range(10):
        await (await server.connect()).aclose()
    assert await server.ask(b"", end=False) == b""
    await until(lambda: server.counters.connections_open == 0)
    assert server.counters.requests == 0
    assert server.counters.disconnects[Disconnect.EOF] == 10
    assert server.counters.disconnects[Disconnect.IDLE] == 1
    assert {each["level"] for each in server.events if each["event"] != "serving"} <= {"debug"}


async def test_a_reset_within_a_line_counts_the_line(start_socket: Start) -> None:
    """A reset within a line counts the line as incomplete; a reset between lines counts no request."""
    server = await start_socket()
    async with good_client(server.connect):
        quiet, midline = await server.connect(), await server.connect()
        await midline.send_all(b"TI")
        await until(server.midline)
        reset(quiet)
        reset(midline)
        await until(lambda: server.counters.disconnects[Disconnect.RESET] == 2)
    assert server.counters.rejected[Rejection.INCOMPLETE] == 1


async def test_a_reset_during_the_answers_makes_send_errors(start_socket: Start) -> None:
    """If a client resets while answers are on their way, the untaken answers are send errors."""
    server = await start_socket()
    async with good_client(server.connect):
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, client, b"TIME\r\n" * 1_000_000)
            # While a send blocks, its requests stay unaccounted.
            await until(lambda: server.counters.unaccounted > 1)
            reset(client)
        await until(lambda: server.counters.disconnects[Disconnect.RESET] == 1)
    assert server.counters.send_errors[SendError.RESET] > 0


async def test_a_reset_after_an_answer_leaves_the_response_counted(start_socket: Start) -> None:
    """If a client resets after its answer, the answer is a response."""
    server = await start_socket()
    client = await server.connect()
    await assert_answered(client)
    reset(client)
    await until(lambda: server.counters.disconnects[Disconnect.RESET] == 1)
    assert server.counters.responses == 1


async def test_a_storm_of_resets_affects_no_other_client(start_socket: Start) -> None:
    """A thousand connections that end with a reset affect no other client and log nothing above debug."""
    server = await start_socket(log_level="info")
    storm = 1000
    async with good_client(server.connect), trio.open_nursery() as nursery:
        before = server.counters.connections

        async def thunder(count: int) -> None:
            for number in range(count):
                client = await server.open()
                if number % 2:
                    await client.send_all(b"TIME\r\nTI")
                reset(client)

        for _ in range(20):
            nursery.start_soon(thunder, storm // 20)
    await until(lambda: server.counters.connections - before == storm)
    assert {each["event"] for each in server.events} <= {"serving", "traffic"}
    assert len(server.events) < 10


async def test_a_client_beyond_the_limit_is_refused(start_socket: Start) -> None:
    """A client beyond the limit gets `busy`, or is closed before a handshake; clients and scrapes go on."""
    server = await start_socket(max_connections=3, metrics_port=0)
    inside = [await server.connect() for _ in range(3)]
    await until(lambda: server.counters.connections_open == 3)
    for _ in range(5):
        assert await server.refuses(BUSY)
    assert server.server is not None
    seen = await scrape(server.server.metrics_addresses[0])
    assert seen.total("triojam_connections_rejected_total", reason="busy") == 5
    for client in inside:
        await assert_answered(client)
    assert server.counters.connections == 8
    await inside[0].aclose()
    await until(lambda: server.counters.connections_open == 2)
    assert await server.ask(b"TIME\r\n") == JAM


async def test_busy_arrives_although_the_client_has_sent_a_request(start_plain: Start) -> None:
    """A refused client that sends its request at once still receives the reason."""
    server = await start_plain(max_connections=1)
    await server.connect()
    await until(lambda: server.counters.connections_open == 1)
    for _ in range(20):
        client = await server.connect()
        with suppress(trio.BrokenResourceError):
            await client.send_all(b"TIME\r\n")
        assert await receive_exactly(client, len(BUSY)) == BUSY


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\xa5\n", b"\x1b]0;owned\x07\x00\xff\r\n"]
)
async def test_noise_is_rejected_and_logged_escaped(start_socket: Start, noise: bytes) -> None:
    """HTTP, a TLS hello and terminal escapes get error lines; the log never has the raw bytes."""
    server = await start_socket()
    async with good_client(server.connect):
        assert (await server.ask(noise)).startswith(b"ERROR ")
    assert all(each["line"].isprintable() for each in server.events.named("request rejected"))


class BrokenHandlerError(Exception):
    """An unexpected error."""


async def test_an_exception_ends_only_one_connection(
    start_socket: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception ends its connection and is counted; one traceback stands for all of the next seconds."""
    server = await start_socket()
    good, bad, worse = [await server.connect() for _ in range(3)]
    await assert_answered(good)

    def explode() -> bytes:
        raise BrokenHandlerError

    with monkeypatch.context() as patch:
        patch.setattr(server.handler._service, "jam", explode)
        for client in (bad, worse):
            await client.send_all(b"TIME\r\nx\r\n")  # for the bad line, the lane hands it over
            assert await receive_all(client) == b""
    await assert_answered(good)
    (event,) = server.events.named("connection failed")
    assert event["level"] == "error"
    assert event["exc_info"]
    assert event["failures"] == 1
    server.internal_errors = 2
    assert server.counters.disconnects[Disconnect.INTERNAL_ERROR] == 2


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(b"TIME\r\nQUIT\r\n", Disconnect.QUIT), (b"x" * 600, Disconnect.TOO_LONG)],
)
async def test_a_reset_does_not_change_the_reason_of_an_end(
    start_socket: Start, sent: bytes, reason: Disconnect
) -> None:
    """If a client resets after the server has decided to close, the server's reason is counted."""
    server = await start_socket()
    for _ in range(10):
        client = await server.connect()
        await client.send_all(sent)
        assert await receive_exactly(client, 4) in (b"JAM ", b"ERRO")
        reset(client)
    await until(lambda: server.counters.connections_open == 0)
    assert server.counters.disconnects[reason] == 10


async def client_with_little_room(server: Running) -> ClientEnd:
    """Open a connection whose client has a small receive buffer."""
    client = await server.connect()
    raw(client).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return client


async def test_unread_answers_do_not_fill_kernel_buffers(start_socket: Start) -> None:
    """If a client does not read, the server stops early, before the kernel has many answers."""
    server = await start_socket(send_timeout=0.3)
    await flood(await client_with_little_room(server), b"TIME\r\n" * 100_000)
    await until(lambda: server.counters.disconnects[Disconnect.SEND_TIMEOUT] == 1)
    assert server.counters.send_errors[SendError.TIMEOUT] > 0
    assert server.counters.responses * len(JAM) < 200_000


async def test_answers_before_a_drain_arrive_after_it(start_socket: Start) -> None:
    """A client that sends a request to a server that has stopped still receives its earlier answers."""
    server = await start_socket()
    client = await client_with_little_room(server)
    await client.send_all(b"TIME\r\n" * 1000)
    await until(lambda: server.counters.responses == 1000)
    server.drain()
    await trio.sleep(0.2)  # nothing tells a client that the server is about to close
    await client.send_all(b"TIME\r\n")
    received = await receive_all(client)
    assert received.removesuffix(JAM) in (JAM * 1000, JAM * 999)


async def test_a_client_that_reads_late_is_not_idle(start_socket: Start) -> None:
    """A client that takes its answers after idle_timeout, within send_timeout, gets its next answers."""
    server = await start_socket(idle_timeout=0.2)
    client = await client_with_little_room(server)
    sent = 0
    while not server.counters.unaccounted:
        await client.send_all(b"TIMExx\r\n" * 1024)
        sent += 1024
        await trio.lowlevel.checkpoint()
    await client.send_all(b"TIME\r\n" * 5)
    await trio.sleep(0.5)  # the pause is the fault
    assert await receive_exactly(client, (sent + 5) * len(JAM)) == JAM * (sent + 5)


async def test_a_reload_changes_the_limits_of_open_connections(start_socket: Start) -> None:
    """A new line limit applies to connections that are open already."""
    running = await start_socket()
    client = await running.connect()
    await assert_answered(client, b"TIME please tell\r\n")
    running.reload(max_line_bytes=8)
    await client.send_all(b"TIME please tell\r\n")
    assert (await receive_all(client)).startswith(b"ERROR too_long: send lines of at most 8 bytes")


async def test_a_server_without_free_descriptors_can_stop(start_socket: Start) -> None:
    """A server that is out of descriptors can still be stopped."""
    server = await start_socket()
    assert await server.ask(b"TIME\r\n") == JAM
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        server.drain()
        with trio.fail_after(PATIENCE):
            await server.finished.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
