"""asyncio with its stream API, a task for each client; ``--uvloop`` selects that event loop."""

import asyncio
import sys

from benchmarks.peers.clock import LONGEST_LINE, answer, is_request


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one client."""
    try:
        while is_request(await reader.readline()):
            writer.write(answer())
            await writer.drain()
    except (ConnectionError, ValueError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    """Serve until the process ends."""
    server = await asyncio.start_server(handle, "127.0.0.1", port, limit=LONGEST_LINE, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(main(int(sys.argv[1])))
    else:
        asyncio.run(main(int(sys.argv[1])))
