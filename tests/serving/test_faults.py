"""What clients do wrong on real sockets: floods, resets, silence. A good client beside them never notices."""

import resource
import socket
import struct
from contextlib import suppress
from dataclasses import replace

import pytest
import trio

from tests.conftest import Start
from tests.helpers.invariants import good_client
from tests.helpers.scrape import scrape
from tests.helpers.servers import JAM, PATIENCE, ClientEnd, Running, raw, receive_all, receive_exactly, until
from triojam.core.protocol import REFUSALS, Rules
from triojam.core.reasons import Disconnect, Refusal, Rejection, SendError

BUSY = REFUSALS[Refusal.BUSY]
ERROR_LINES = {reason: Rules().error_line(reason) for reason in Rejection}


def reset(client: ClientEnd) -> None:
    """Close with RST."""
    tcp = raw(client)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.socket.close()


def resident_bytes() -> int:
    """Return this process's resident memory at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def test_never_reading(start_socket: Start) -> None:
    """A client that sends a million requests and reads nothing is cut off, and memory stays flat."""
    server = await start_socket(send_timeout=0.5)
    async with good_client(server.connect):
        client = await server.connect()
        memory = resident_bytes()
        with suppress(trio.BrokenResourceError):
            for _ in range(1000):
                await client.send_all(b"TIME\r\n" * 1000)
        await until(lambda: server.counters.disconnects[Disconnect.SEND_TIMEOUT] == 1)
        assert resident_bytes() - memory < 30_000_000
    assert server.counters.send_errors[SendError.TIMEOUT] > 0


async def test_taken_answers_are_counted_to_the_last(start_socket: Start) -> None:
    """Of a batch that is cut off in the middle, those answers are responses that the kernel took whole."""
    server = await start_socket(send_timeout=0.2)
    client = await server.connect()
    with suppress(trio.BrokenResourceError):
        for _ in range(1000):
            await client.send_all(b"TIME\r\n" * 1000)
    await until(lambda: server.counters.connections_open == 0)
    received = bytearray()
    with suppress(trio.BrokenResourceError):
        async for data in client:
            received += data
    # The reset drops what was on its way; what did arrive was counted.
    assert len(received) // len(JAM) <= server.counters.responses
    assert (
        server.counters.responses + server.counters.send_errors[SendError.TIMEOUT] == server.counters.requests
    )


async def test_resumes_reading_in_time(start_socket: Start) -> None:
    """A client that stops reading, and goes on before the deadline, gets every answer in order."""
    server = await start_socket()
    client = await server.connect()
    count = 600_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"TIME\r\n" * count)
        await until(lambda: server.counters.unaccounted > 0)
        blocked = server.counters.requests
        await trio.sleep(0.1)  # the pause is the fault; nothing tells that the server has stopped reading
        assert server.counters.requests < count
        assert server.counters.requests >= blocked
        received = await receive_exactly(client, count * len(JAM))
    assert received == JAM * count


async def test_endless_line(start_socket: Start) -> None:
    """A line without end is cut off at the limit, long before the client is through; memory stays flat."""
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


async def test_the_error_survives_unread_input(start_socket: Start) -> None:
    """The error line about an endless line arrives, although the client has sent much more than the limit."""
    server = await start_socket()
    client = await server.connect()
    await client.send_all(b"x" * 100_000)
    assert await receive_all(client) == ERROR_LINES[Rejection.TOO_LONG]


async def test_slowloris(start_socket: Start) -> None:
    """Many clients that send a byte now and then are each closed at the line timeout, and counted."""
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


async def test_silence_and_probes_are_no_news(start_socket: Start) -> None:
    """Connecting and closing, or keeping silent, is no request and no log line above debug."""
    server = await start_socket(idle_timeout=0.1)
    for _ in range(10):
        await (await server.connect()).aclose()
    assert await server.ask(b"", end=False) == b""
    await until(lambda: server.counters.connections_open == 0)
    assert server.counters.requests == 0
    assert server.counters.disconnects[Disconnect.EOF] == 10
    assert server.counters.disconnects[Disconnect.IDLE] == 1
    assert {each["level"] for each in server.events if each["event"] != "serving"} <= {"debug"}


async def test_reset_before_an_answer_is_due(start_socket: Start) -> None:
    """A reset between requests is an ordinary end; in the middle of a line the line is counted as cut off."""
    server = await start_socket()
    async with good_client(server.connect):
        quiet, midline = await server.connect(), await server.connect()
        await midline.send_all(b"TI")
        await until(server.midline)
        reset(quiet)
        reset(midline)
        await until(lambda: server.counters.disconnects[Disconnect.RESET] == 2)
    assert server.counters.rejected[Rejection.INCOMPLETE] == 1


async def test_reset_during_an_answer(start_socket: Start) -> None:
    """A reset while answers are on their way makes send errors of those that were not taken."""
    server = await start_socket()
    async with good_client(server.connect):
        client = await server.connect()
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await client.send_all(b"TIME\r\n" * 1_000_000)

            nursery.start_soon(flood)
            # A send that blocks shows in requests that stay unaccounted while the loop goes on.
            await until(lambda: server.counters.unaccounted > 1)
            reset(client)
        await until(lambda: server.counters.disconnects[Disconnect.RESET] == 1)
    assert server.counters.send_errors[SendError.RESET] > 0


async def test_reset_after_an_answer(start_socket: Start) -> None:
    """A client that resets once it has its answer has had a response."""
    server = await start_socket()
    client = await server.connect()
    await client.send_all(b"TIME\r\n")
    assert await receive_exactly(client, len(JAM)) == JAM
    reset(client)
    await until(lambda: server.counters.disconnects[Disconnect.RESET] == 1)
    assert server.counters.responses == 1


async def test_a_storm_of_resets(start_socket: Start) -> None:
    """A thousand connections that end in a reset touch nobody else and log nothing above debug."""
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


async def test_one_more_than_the_cap(start_socket: Start) -> None:
    """Over the cap, one is told `busy`, or closed before a handshake; those inside go on, and scrapes."""
    server = await start_socket(max_connections=3, metrics_port=0)
    inside = [await server.connect() for _ in range(3)]
    await until(lambda: server.counters.connections_open == 3)
    for _ in range(5):
        assert await server.refuses(BUSY)
    assert server.server is not None
    seen = await scrape(server.server.metrics_addresses[0])
    assert seen.total("triojam_connections_rejected_total", reason="busy") == 5
    for client in inside:
        await client.send_all(b"TIME\r\n")
        assert await receive_exactly(client, len(JAM)) == JAM
    assert server.counters.connections == 8
    await inside[0].aclose()
    await until(lambda: server.counters.connections_open == 2)
    assert await server.ask(b"TIME\r\n") == JAM


async def test_busy_arrives_although_the_client_spoke_first(start_plain: Start) -> None:
    """A refused client that sends its request at once still gets to read why."""
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
async def test_noise(start_socket: Start, noise: bytes) -> None:
    """HTTP, a TLS hello and terminal escapes get error lines; the log never has the raw bytes."""
    server = await start_socket()
    async with good_client(server.connect):
        assert (await server.ask(noise)).startswith(b"ERROR ")
    assert all(each["line"].isprintable() for each in server.events.named("request rejected"))


class BrokenHandlerError(Exception):
    """An error that nobody foresaw."""


async def test_an_exception_in_one_connection(start_socket: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends that connection, is logged once with its traceback, counted, and touches nobody else."""
    server = await start_socket()
    good, bad = await server.connect(), await server.connect()
    await good.send_all(b"TIME\r\n")
    assert await receive_exactly(good, len(JAM)) == JAM

    def explode() -> bytes:
        raise BrokenHandlerError

    with monkeypatch.context() as patch:
        patch.setattr(server.handler._service, "jam", explode)
        await bad.send_all(b"TIME\r\nx\r\n")  # the bad line brings it to the handler from the lane, too
        assert await receive_all(bad) == b""
    await good.send_all(b"TIME\r\n")
    assert await receive_exactly(good, len(JAM)) == JAM
    (event,) = server.events.named("connection failed")
    assert event["level"] == "error"
    assert event["exc_info"]
    server.internal_errors = 1
    assert server.counters.disconnects[Disconnect.INTERNAL_ERROR] == 1


@pytest.mark.parametrize(
    ("sent", "reason"),
    [(b"TIME\r\nQUIT\r\n", Disconnect.QUIT), (b"x" * 600, Disconnect.TOO_LONG)],
)
async def test_the_end_that_was_decided_is_the_one_that_counts(
    start_socket: Start, sent: bytes, reason: Disconnect
) -> None:
    """A client that resets once it has been told to go has ended for the reason it was told."""
    server = await start_socket()
    for _ in range(10):
        client = await server.connect()
        await client.send_all(sent)
        assert await receive_exactly(client, 4) in (b"JAM ", b"ERRO")
        reset(client)
    await until(lambda: server.counters.connections_open == 0)
    assert server.counters.disconnects[reason] == 10


async def deaf_client(server: Running) -> ClientEnd:
    """Open a connection whose client has room for next to no answers."""
    client = await server.connect()
    raw(client).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return client


async def test_a_deaf_client_is_not_paid_for(start_socket: Start) -> None:
    """Answers that nobody takes do not pile up in the kernel: the server stops early, and then resets."""
    server = await start_socket(send_timeout=0.3)
    client = await deaf_client(server)
    with suppress(trio.BrokenResourceError):
        await client.send_all(b"TIME\r\n" * 100_000)
    await until(lambda: server.counters.disconnects[Disconnect.SEND_TIMEOUT] == 1)
    assert server.counters.send_errors[SendError.TIMEOUT] > 0
    assert server.counters.responses * len(JAM) < 200_000


async def test_what_was_answered_before_a_drain_arrives(start_socket: Start) -> None:
    """A client that speaks once more to a server that stops still gets all that it was answered before."""
    server = await start_socket()
    client = await deaf_client(server)
    await client.send_all(b"TIME\r\n" * 1000)
    await until(lambda: server.counters.responses == 1000)
    server.drain()
    await trio.sleep(0.2)  # nothing tells a client that the server is about to close
    await client.send_all(b"TIME\r\n")
    received = await receive_all(client)
    assert received.removesuffix(JAM) in (JAM * 1000, JAM * 999)


async def test_requests_behind_answers_that_were_taken_late(start_socket: Start) -> None:
    """A client that takes its answers within the send timeout is not idle: what it asks next is answered."""
    server = await start_socket(idle_timeout=0.2)
    client = await deaf_client(server)
    sent = 0
    while not server.counters.unaccounted:
        await client.send_all(b"TIMExx\r\n" * 1024)
        sent += 1024
        await trio.lowlevel.checkpoint()
    await client.send_all(b"TIME\r\n" * 5)
    await trio.sleep(0.5)  # the pause is the fault
    assert await receive_exactly(client, (sent + 5) * len(JAM)) == JAM * (sent + 5)


async def test_a_pause_in_reading_is_no_pause_in_a_line(start_socket: Start) -> None:
    """A client that takes its answers after line_timeout, but in send_timeout, is answered to the last."""
    server = await start_socket(line_timeout=0.2)
    client = await server.connect()
    count = 600_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"TIME\r\n" * count)
        await until(lambda: server.counters.unaccounted > 1)
        await trio.sleep(0.6)  # the pause is the fault
        assert await receive_exactly(client, count * len(JAM)) == JAM * count
    assert server.counters.rejected[Rejection.TIMEOUT] == 0


async def test_new_limits_are_for_every_line_to_come(start_socket: Start) -> None:
    """A reload changes the limits of connections that are open, too."""
    running = await start_socket()
    assert running.server is not None
    client = await running.connect()
    await client.send_all(b"TIME please tell\r\n")
    assert await receive_exactly(client, len(JAM)) == JAM
    running.server.reload(replace(running.server._settings, max_line_bytes=8))
    await client.send_all(b"TIME please tell\r\n")
    assert (await receive_all(client)).startswith(b"ERROR too_long: send lines of at most 8 bytes")


async def test_a_drain_without_a_descriptor_to_spare(start_socket: Start) -> None:
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
