"""asyncio with callbacks, without tasks or streams; ``--uvloop`` selects that event loop."""

import asyncio
import sys
from typing import cast

from benchmarks.peers.clock import LONGEST_LINE, answer, is_request


class TimeProtocol(asyncio.Protocol):
    """Answers all complete lines of the received data with one write."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer complete lines, and keep the rest."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        if not all(is_request(line + b"\n") for line in lines) or len(self.rest) >= LONGEST_LINE:
            self.transport.close()
        elif lines:
            self.transport.write(answer() * len(lines))

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read its answers."""
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Continue reading."""
        self.transport.resume_reading()


async def main(port: int) -> None:
    """Serve until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(TimeProtocol, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(main(int(sys.argv[1])))
    else:
        asyncio.run(main(int(sys.argv[1])))
