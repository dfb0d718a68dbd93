"""Trio as in its tutorial: a task for each client, ``receive_some`` and ``send_all``."""

import sys
from functools import partial

import trio

from benchmarks.peers.clock import LONGEST_LINE, answer, is_request


async def handle(stream: trio.SocketStream) -> None:
    """Answer one client: all complete lines of a read with one write."""
    rest = b""
    try:
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            if not all(is_request(line + b"\n") for line in lines) or len(rest) >= LONGEST_LINE:
                return
            if lines:
                await stream.send_all(answer() * len(lines))
    except trio.BrokenResourceError:
        pass
    finally:
        await stream.aclose()


if __name__ == "__main__":
    serve = partial(trio.serve_tcp, handle, int(sys.argv[1]), host="127.0.0.1", backlog=1024)
    trio.run(serve)
