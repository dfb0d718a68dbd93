"""Portable path, fast lane and TLS get the same random traffic: answers and counts must be the same."""

from contextlib import suppress
from dataclasses import dataclass

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.servers import (
    JAM,
    Running,
    balanced,
    raw,
    receive_exactly,
    reset_on_close,
    start_lane,
    start_tcp,
    start_tls,
    until,
)
from triojam.core.protocol import Connection, Rules

LINES = st.sampled_from(
    [b"TIME\r\n", b"TIME\r\n" * 7, b"TIMEX\r\n", b"TIME\n", b"HELLO\r\n", b"QUIT\r\n", b"\r\n", b"x" * 600]
)
PIECES = st.sampled_from([b"T", b"TI", b"ME\r\n", b"TIME\r", b"\n", b"TIME\r\nTI", b"QUIT", b"\x00\xff"])
SENDS = st.lists(LINES | PIECES | st.binary(max_size=20), min_size=1, max_size=4)
RULES = Rules(error_budget=4)


@dataclass(frozen=True)
class Step:
    """A number of sends, then, if `pause` is set, a pause until every answer has come."""

    sends: list[bytes]
    pause: bool


scripts = st.tuples(
    st.lists(st.builds(Step, SENDS, st.booleans()), max_size=5),
    st.sampled_from(["close", "half-close", "reset"]),
)


async def play(server: Running, script: tuple[list[Step], str]) -> bytes:
    """Play one script on a new connection, and return all received bytes."""
    steps, end = script
    model = Connection(RULES)
    expected = 0
    ended = False
    received = b""
    client = await server.connect()
    for step in steps:
        for data in step.sends:
            with suppress(trio.BrokenResourceError):
                await client.send_all(data)
            if not ended:
                outcome = model.receive(data, lambda: JAM)
                expected += len(b"".join(outcome.answers))
                ended = outcome.end is not None
        if step.pause or ended:
            received += await receive_exactly(client, expected - len(received))
        if ended:
            break
    received += await receive_exactly(client, expected - len(received))
    if ended or end == "half-close":
        with suppress(trio.BrokenResourceError):
            await client.send_eof()
        with suppress(trio.BrokenResourceError):
            received += await receive_exactly(client, 1)
    elif end == "reset":
        if model.midline:
            await until(server.midline)
        client = raw(client)
        reset_on_close(client)
    await client.aclose()
    await until(lambda: server.counters.connections_open == 0)
    return received


def counted(server: Running) -> dict[str, object]:
    """Return the counters that depend on traffic, and not on timing."""
    counters = server.counters
    return {
        "requests": counters.requests,
        "responses": counters.responses,
        "rejected": counters.rejected,
        "send_errors": counters.send_errors,
        "connections": counters.connections,
        "refused": counters.connections_rejected,
        "disconnects": counters.disconnects,
        "internal_errors": counters.internal_errors,
        "durations": counters.request_duration.count,
    }


@settings(deadline=None, max_examples=60)
@given(traffic=st.lists(scripts, min_size=1, max_size=4))
def test_same_traffic_same_answers_same_counts(traffic: list[tuple[list[Step], str]]) -> None:
    """Fragments, pipelines, garbage, half-closes, resets and pauses give the same on all paths."""

    async def compare() -> None:
        async with trio.open_nursery() as nursery:
            portable = await start_tcp(nursery, error_budget=RULES.error_budget)
            lane = await start_lane(nursery, error_budget=RULES.error_budget)
            secured = await start_tls(nursery, error_budget=RULES.error_budget)
            for script in traffic:
                expected = await play(portable, script)
                assert await play(lane, script) == expected
                assert await play(secured, script) == expected
            assert counted(lane) == counted(secured) == counted(portable)
            for server in (portable, lane, secured):
                await server.close_clients()
                await balanced(server.counters)
            nursery.cancel_scope.cancel()

    trio.run(compare)
