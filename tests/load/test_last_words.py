"""The load knows how a server of this protocol ends a connection, and backs off when it is refused."""

from typing import Any

import pytest
import trio

from tests.helpers.bad_servers import start_bad
from tests.helpers.servers import JAM, Running, start_lane, start_tcp, until
from tests.load.running import address_of, run
from triojam.load.measure.checker import AFTER_THE_END
from triojam.load.plan import Mix

LONG = "x" * 400


async def balanced(server: Running, **plan: Any) -> Any:
    """Run a load, check it against the server's counters, and return its tally."""
    tally = (await run(address_of(server), **plan)).tally
    counters = server.counters
    await until(lambda: counters.connections_open == 0)
    assert tally.rejected == sum(counters.rejected.values())
    assert tally.answered == counters.responses
    return tally


@pytest.mark.parametrize("lane", [False, True])
@pytest.mark.parametrize(
    ("settings", "mix"),
    [
        ({"error_budget": 3}, "TIME:1,HELLO:3"),
        ({"error_budget": 10}, "HELLO:1"),
        ({"error_budget": 1}, "TIME:3,HELLO:1"),
        ({"error_budget": 0}, "TIME:1,HELLO:9"),
        ({"max_line_bytes": 100}, f"TIME:5,{LONG}:1"),
        ({"on_reject": "close"}, "TIME:5,HELLO:1"),
        ({"on_reject": "close"}, f"HELLO:1,{LONG}:1"),
    ],
)
async def test_no_request_is_sent_to_a_connection_that_the_server_closes(
    nursery: trio.Nursery, settings: dict[str, Any], mix: str, *, lane: bool
) -> None:
    """After a last word, or after the last error of a budget, the next request has a new connection."""
    server = await (start_lane if lane else start_tcp)(nursery, **settings)
    tally = await balanced(server, requests=300, mix=Mix.parse(mix))
    assert not any((tally.failed, tally.unasked, tally.unconnected))
    assert tally.sent == 300
    assert tally.closed_instead == (tally.rejected if "on_reject" in settings else 0)


async def test_requests_behind_a_last_word_have_their_own_cause(nursery: trio.Nursery) -> None:
    """In a pipeline, what follows a line that ended the connection was not read by the server."""
    server = await start_tcp(nursery, max_line_bytes=100)
    mix = Mix.parse(f"TIME:9,{LONG}:1")
    tally = await balanced(server, requests=200, pipeline=10, connections=1, mix=mix)
    assert tally.failed.keys() == {AFTER_THE_END}
    assert tally.sent == tally.settled + tally.failed.total()


async def test_the_load_backs_off_when_connections_are_refused(nursery: trio.Nursery) -> None:
    """Above a limit, a place for a connection is tried again after longer and longer pauses."""
    server = await start_tcp(nursery, connections_per_source=2)
    tally = (await run(address_of(server), connections=10, seconds=1.0)).tally
    await until(lambda: server.counters.connections_open == 0)
    # At most 4 tries a place within a second: at once, and after 0.1, 0.3 and 0.7 s.
    assert 8 <= tally.failed.total() + tally.unasked.total() <= 8 * 4
    assert tally.answered == server.counters.responses


async def test_a_refusal_counts_once(nursery: trio.Nursery) -> None:
    """A request that was not sent when the refusal came is not lost: it goes to another connection."""
    seen = []

    async def refuses_the_second(stream: trio.abc.Stream) -> None:
        seen.append(stream)
        if len(seen) == 2:
            await stream.send_all(b"ERROR busy: too many connections\r\n")
            return
        async for data in stream:
            await stream.send_all(JAM * data.count(b"\n"))

    tally = (await run(await start_bad(nursery, refuses_the_second), requests=40, connections=2)).tally
    assert tally.failed.total() + tally.unasked.total() == 1
    assert tally.answered + tally.failed.total() == 40


async def test_every_request_has_its_own_patience(nursery: trio.Nursery) -> None:
    """A request that is sent after the end, because the server was slow, may take as long as any other."""

    async def takes_its_time(stream: trio.abc.Stream) -> None:
        while await stream.receive_some(6):
            await trio.sleep(0.2)
            await stream.send_all(JAM)

    address = await start_bad(nursery, takes_its_time)
    tally = (await run(address, connections=1, rate=20.0, seconds=0.5, patience=0.3)).tally
    assert not tally.failed
    assert tally.never_sent == tally.longer.total() > 0
    assert tally.answered + tally.never_sent + tally.left_out == 10
