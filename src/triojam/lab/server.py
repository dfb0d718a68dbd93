"""The lab's server, in a separate process: the whole service, with a clock that can be set wrong.

It takes its settings as JSON from the command line, and prints a line when it serves. Each line of
stdin sets how many seconds its clock is ahead. At the end of stdin it drains and ends, so the server ends
with the lab, even if the lab is killed.
"""

import json
import sys
import time
from functools import partial
from typing import Any

import trio

from triojam.server import serve
from triojam.settings.fields import Settings

STDIN = 0


async def main(settings: Settings) -> None:
    """Serve until the end of stdin."""
    ahead = 0.0
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, settings, now=lambda: time.time() + ahead))
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        unread = b""
        async for data in trio.lowlevel.FdStream(STDIN):
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                ahead = float(line)
        server.drain()


if __name__ == "__main__":
    given: dict[str, Any] = json.loads(sys.argv[1])
    trio.run(main, Settings(**given))
