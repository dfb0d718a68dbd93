"""The first requests of a load: they find the offset of the server's clock."""

import time

import trio

from tests.helpers.bad_servers import JAM, start_bad
from tests.helpers.servers import PATIENCE
from triojam.client.session import Target
from triojam.load.plan import Plan
from triojam.load.run import TIGHT_SECONDS, LoadRun


async def test_a_slow_first_answer_is_not_the_last_word_about_the_offset(nursery: trio.Nursery) -> None:
    """The load asks again until an answer comes fast enough to know the offset well."""
    asked: list[bytes | bytearray] = []

    async def slow_at_first(stream: trio.abc.Stream) -> None:
        async for data in stream:
            asked.append(data)
            if len(asked) == 1:
                await trio.sleep(TIGHT_SECONDS + 0.3)
            now = time.localtime()
            await stream.send_all(JAM % (now.tm_hour, now.tm_min, now.tm_sec))

    address = await start_bad(nursery, slow_at_first)
    server = await LoadRun(Target(*address), Plan(patience=PATIENCE))._ask_first()
    assert len(asked) > 1
    assert server.bound < 0.5 + (TIGHT_SECONDS + 0.3) / 2
    assert abs(server.offset) <= server.bound
