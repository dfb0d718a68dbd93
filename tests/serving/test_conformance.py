"""One suite for every transport: the table of the protocol, deadlines, and drains."""

import time

import pytest
import trio

from tests.conftest import Start
from tests.helpers.servers import JAM, assert_answered, receive_all, receive_exactly, until
from triojam.core.protocol import Rules
from triojam.core.reasons import Disconnect, Rejection
from triojam.serving.deadlines import DRAIN_WINDOW, Timeouts
from triojam.verify.vectors import VECTORS, Vector, cuts

ERROR_LINES = {reason: Rules().error_line(reason) for reason in Rejection}
# Long enough to serve a request, short enough for a test to wait.
SOON = 0.05


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: repr(vector.sent[:24]))
async def test_every_vector_is_answered_and_counted(start: Start, vector: Vector) -> None:
    """Every row of the table is answered and counted as it says, however its bytes are cut."""
    server = await start()
    ways = cuts(vector.sent)
    every_cut = ways if len(ways) < 64 else ways[:2] + ways[2::37]
    for pieces in every_cut:
        client = await server.connect()
        # The server may have closed before the last piece is sent; its answers still arrive.
        try:
            for piece in pieces:
                await client.send_all(piece)
                if len(pieces) == 2:
                    await trio.testing.wait_all_tasks_blocked()
            if vector.ended or vector.end is None:
                await client.send_eof()
        except trio.BrokenResourceError:
            assert vector.end not in (None, Disconnect.EOF)
        expected = vector.expected(JAM, ERROR_LINES)
        assert await receive_exactly(client, len(expected)) == expected
        assert await receive_to_end(client) == b""
        await client.aclose()
    times = len(every_cut)
    await until(lambda: server.counters.connections_open == 0)
    assert server.counters.requests == times * vector.requests
    assert server.counters.disconnects[vector.end or Disconnect.EOF] == times
    for reason in Rejection:
        assert server.counters.rejected[reason] == times * vector.rejected.count(reason)


async def receive_to_end(client: trio.abc.ReceiveStream) -> bytes:
    """Receive until the server closes, or resets after the last answer."""
    try:
        return await receive_all(client)
    except trio.BrokenResourceError:
        return b""


async def test_many_clients_are_served_at_once(start: Start) -> None:
    """A hundred clients are served while a hundred others have unfinished lines."""
    server = await start()
    slow = [await server.connect() for _ in range(100)]
    for client in slow:
        await client.send_all(b"TI")
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(assert_answered, await server.connect())
    for client in slow:
        await assert_answered(client, b"ME\r\n")


async def test_ten_thousand_pipelined_requests_are_answered(start: Start) -> None:
    """Ten thousand requests in one write are answered in order, and another client is served meanwhile."""
    server = await start()
    client = await server.connect()
    received = bytearray()

    async def receive() -> None:
        received.extend(await receive_exactly(client, 10_000 * len(JAM)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(client.send_all, b"TIME\r\n" * 10_000)
        assert await server.ask(b"TIME\r\n") == JAM
    assert received == JAM * 10_000
    assert server.counters.responses == 10_001


async def test_answers_have_the_order_of_their_requests(start: Start) -> None:
    """Times and errors come in the order of their requests."""
    server = await start()
    error = ERROR_LINES[Rejection.BAD_COMMAND]
    assert await server.ask(b"TIME\r\nx\r\n" * 500) == (JAM + error) * 500


SUMMER = 1_774_745_999.5  # 2026-03-29 00:59:59.5 UTC, half a second before Berlin's clocks go forward
WINTER = 1_792_889_999.5  # 2026-10-25 00:59:59.5 UTC, half a second before they go back
MIDNIGHT = 1_798_761_600.0  # 2027-01-01 00:00:00 UTC


@pytest.mark.parametrize(
    ("zone", "moments", "told"),
    [
        ("UTC", [MIDNIGHT - 0.001, MIDNIGHT, MIDNIGHT + 0.999], "23:59:59 00:00:00 00:00:00"),
        ("UTC", [MIDNIGHT, MIDNIGHT + 3600, MIDNIGHT], "00:00:00 01:00:00 00:00:00"),
        ("Europe/Berlin", [SUMMER, SUMMER + 0.5], "01:59:59 03:00:00"),
        ("Europe/Berlin", [WINTER, WINTER + 0.5], "02:59:59 02:00:00"),
        # In Linux, an inserted leap second repeats a second, and a deleted one leaves a second out.
        ("UTC", [MIDNIGHT - 0.1, MIDNIGHT - 1, MIDNIGHT], "23:59:59 23:59:59 00:00:00"),
        ("UTC", [MIDNIGHT - 1.1, MIDNIGHT], "23:59:58 00:00:00"),
    ],
    ids=["midnight", "steps", "summer", "winter", "leap", "negative-leap"],
)
async def test_answers_follow_the_wall_clock(
    start: Start, zone: str, moments: list[float], told: str
) -> None:
    """Each answer has the present time of the clock, and a step of the clock moves no deadline."""
    hands = [moments[0]]
    server = await start(now=lambda: hands[0], timezone=zone, idle_timeout=60, line_timeout=60)
    client, midline = await server.connect(), await server.connect()
    await midline.send_all(b"TI")
    for hands[0], time_of_day in zip(moments, told.split(), strict=True):
        await client.send_all(b"TIME\r\nTIME\r\n")
        expected = f"JAM {time_of_day}\r\n".encode() * 2
        assert await receive_exactly(client, len(expected)) == expected
    await midline.send_all(b"ME\r\n")
    assert await receive_exactly(midline, len(JAM)) == expected[: len(JAM)]


async def test_the_idle_time_begins_again_after_each_answer(start: Start) -> None:
    """The idle time begins again after each answer, and a client with a request is not idle."""
    server = await start(idle_timeout=20 * SOON)
    client = await server.connect()
    began = trio.current_time()
    for _ in range(4):
        await assert_answered(client)
        await trio.sleep(6 * SOON)
    assert await receive_all(client) == b""
    assert trio.current_time() - began >= 38 * SOON
    await until(lambda: server.counters.disconnects[Disconnect.IDLE] == 1)


async def test_a_byte_at_a_time_does_not_extend_the_line_timeout(start: Start) -> None:
    """The line_timeout of a line runs from its first byte; further bytes do not extend it."""
    server = await start(line_timeout=4 * SOON)
    client = await server.connect()
    received = bytearray()
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            while True:
                await client.send_all(b"x")
                await trio.sleep(SOON / 2)

        nursery.start_soon(drip)
        received += await receive_exactly(client, len(ERROR_LINES[Rejection.TIMEOUT]))
        nursery.cancel_scope.cancel()
    assert received == ERROR_LINES[Rejection.TIMEOUT]
    await client.send_eof()
    await until(lambda: server.counters.disconnects[Disconnect.LINE_TIMEOUT] == 1)
    assert server.counters.rejected[Rejection.TIMEOUT] == 1


async def test_overdue_clients_do_not_delay_punctual_ones(start: Start) -> None:
    """When many lines are overdue at once, a punctual client is answered before most of them."""
    server = await start(line_timeout=10 * SOON)
    good, *crowd = [await server.connect() for _ in range(601)]
    for client in crowd:
        await client.send_all(b"TI")
    await until(server.midline)
    time.sleep(12 * SOON)  # noqa: ASYNC251  # a blocked loop makes all of them late at once
    await assert_answered(good)
    assert server.counters.rejected[Rejection.TIMEOUT] < 300
    for client in crowd:
        assert await receive_exactly(client, 100) == ERROR_LINES[Rejection.TIMEOUT]
        await client.aclose()


async def test_each_line_has_its_own_line_timeout(start: Start) -> None:
    """A client that always has an unfinished line, but finishes each in time, is not closed."""
    server = await start(line_timeout=20 * SOON)
    client = await server.connect()
    await client.send_all(b"TI")
    for _ in range(4):
        await trio.sleep(6 * SOON)
        await assert_answered(client, b"ME\r\nTI")
    assert server.counters.request_receive.count == 4
    assert server.counters.request_receive.sum >= 24 * SOON


async def test_zero_switches_a_deadline_off(start: Start) -> None:
    """With timeouts of 0, a client may pause before a line and within it."""
    server = await start(idle_timeout=0, line_timeout=0, send_timeout=0)
    client = await server.connect()
    await trio.sleep(SOON)
    await client.send_all(b"TI")
    await trio.sleep(SOON)
    await assert_answered(client, b"ME\r\n")


async def test_on_reject_close_closes_without_an_error_line(start: Start) -> None:
    """With on_reject = close, a bad line closes the connection, as the classic server does."""
    server = await start(on_reject="close")
    client = await server.connect()
    await client.send_all(b"TIME\r\nHELLO\r\nTIME\r\n")
    assert await receive_all(client) == JAM
    await client.aclose()
    await until(lambda: server.counters.disconnects[Disconnect.REJECTED] == 1)


async def test_rejected_lines_are_logged_escaped_and_short(start: Start) -> None:
    """The log has a rejected line at debug level only, escaped, and cut to 64 characters."""
    server = await start()
    await server.ask(b"\x1b[31m\x00\xff" + b"x" * 100 + b"\r\n")
    (event,) = server.events.named("request rejected")
    assert event["level"] == "debug"
    assert event["line"].startswith("\\x1b[31m\\x00\\xffxxx")
    assert len(event["line"]) == 64
    assert all(each["level"] != "warning" for each in server.events)


async def test_nothing_is_logged_for_a_request(start: Start) -> None:
    """A thousand requests make as many log lines as one request."""
    server = await start()
    for count in (1, 1000):
        await server.ask(b"TIME\r\n" * count)
    await until(lambda: server.counters.connections_open == 0)
    ended = server.events.named("connection ended")
    assert [each["reason"] for each in ended] == [] if server.lane else ["eof", "eof"]
    assert len(server.events) == len(ended) + len(server.events.named("serving"))


async def test_a_drain_closes_idle_clients_and_answers_the_rest(start: Start) -> None:
    """A drain closes idle clients at once, lets a client finish its line, and answers received requests."""
    server = await start()
    idle, midline, busy = [await server.connect() for _ in range(3)]
    await midline.send_all(b"TI")
    await assert_answered(busy)
    await until(server.midline)
    await busy.send_all(b"TIME\r\n" * 100)
    server.drain()
    assert await receive_all(idle) == b""
    assert await receive_all(busy) == JAM * 100
    assert not server.finished.is_set()
    await assert_answered(midline, b"ME\r\nTI")
    await midline.send_all(b"ME\r\n")
    assert await receive_all(midline) == JAM
    for client in (idle, midline, busy):
        await client.aclose()
    await server.finished.wait()
    assert server.counters.disconnects[Disconnect.DRAIN] == 3


async def test_a_drain_waits_for_a_request_on_its_way(start: Start) -> None:
    """A client that has just connected, or just had an answer, may still send a request."""
    server = await start()
    fresh, answered = await server.connect(), await server.connect()
    await assert_answered(answered)
    await until(lambda: server.counters.connections_open == 2)
    server.drain()
    await trio.sleep(3 * DRAIN_WINDOW)  # the request must be later than this
    for client in (fresh, answered):
        await client.send_all(b"TIME\r\n")
        assert await receive_all(client) == JAM
        await client.aclose()
    await server.finished.wait()


async def test_a_drain_rejects_an_unfinished_line_before_its_end(start: Start) -> None:
    """Shortly before the grace time ends, an unfinished line is rejected as draining."""
    server = await start(grace=10 * SOON)
    client = await server.connect()
    await client.send_all(b"TI")
    await until(server.midline)
    server.drain()
    assert await receive_all(client) == ERROR_LINES[Rejection.DRAINING]
    await client.aclose()
    await server.finished.wait()
    assert server.counters.rejected[Rejection.DRAINING] == 1


async def test_a_drain_without_grace_cuts_off_and_counts_unfinished_lines(start: Start) -> None:
    """With a grace of 0, a client with an unfinished line is cut off, and the line is counted."""
    server = await start(grace=0)
    client = await server.connect()
    await assert_answered(client, b"TIME\r\nTI")
    server.drain()
    await server.finished.wait()
    assert server.counters.rejected[Rejection.DRAINING] == 1
    assert server.counters.disconnects[Disconnect.DRAIN] == 1


async def test_a_reload_changes_the_timeouts_of_open_connections(start: Start) -> None:
    """A new idle timeout closes a connection that was open before."""
    server = await start()
    client = await server.connect()
    await assert_answered(client)
    server.set_timeouts(Timeouts(idle=SOON))
    await client.send_all(b"TIME\r\n")
    assert await receive_all(client) == JAM
    await until(lambda: server.counters.disconnects[Disconnect.IDLE] == 1)
