"""A connection in memory, for tests without a kernel."""

import math
from contextlib import suppress

import trio
from trio.testing import MemoryReceiveStream, MemorySendStream

from triojam.serving.streams import ClientStream


class MemoryStream(ClientStream):
    """The end of the server of a connection in memory.

    room: the number of bytes that still fit. A test that changes it calls `look`.
    """

    def __init__(self, room: float = math.inf) -> None:
        self.taken = 0
        self.room = room
        self._from_client, self._to_client = MemorySendStream(), MemoryReceiveStream()
        self._received = self._unsent = b""
        self._ended = False
        self._moved = trio.Event()
        self._from_client.send_all_hook = self._look_soon
        self._from_client.close_hook = self.look
        self.client = trio.StapledStream(self._from_client, self._to_client)

    def look(self) -> None:
        """Wake the task that waits for the client."""
        self._moved.set()

    async def _look_soon(self) -> None:
        self.look()

    def peer(self) -> None:
        """Return None: there is no address in memory."""

    def receive_now(self, most: int) -> bytes | None:
        """Receive."""
        self._pull()
        if not self._received and not self._ended:
            return None
        received, self._received = self._received[:most], self._received[most:]
        return received

    async def wait_readable(self) -> None:
        """Wait until the client has done something."""
        await trio.lowlevel.checkpoint()
        self._pull()
        while not (self._received or self._ended):
            await self._wait()
            self._pull()

    def send_now(self, data: bytes) -> bool:
        """Send the bytes that fit."""
        taken = int(min(self.room, len(data)))
        if taken:
            self._to_client.put_data(data[:taken])
        self.room -= taken
        self.taken, self._unsent = taken, data[taken:]
        return not self._unsent

    def flush_now(self) -> bool:
        """Send the rest."""
        before, rest = self.taken, self._unsent
        done = not rest or self.send_now(rest)
        if rest:
            self.taken += before
        return done

    async def wait_writable(self) -> None:
        """Wait until a test has made room."""
        await self._wait()

    async def finish(self) -> None:
        """End the sending side, and read what the client still sends."""
        self._to_client.put_eof()
        while not self._ended:
            await self.wait_readable()
            self._received = b""

    def close(self, *, reset: bool = False) -> None:  # noqa: ARG002  # part of the interface
        """Close; there are no resets in memory."""
        self._to_client.put_eof()

    def _pull(self) -> None:
        with suppress(trio.WouldBlock):
            data = bytes(self._from_client.get_data_nowait())
            self._received += data
            self._ended = not data

    async def _wait(self) -> None:
        self._moved = trio.Event()
        await self._moved.wait()
