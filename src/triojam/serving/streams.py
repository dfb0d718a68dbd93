"""The interface of a client's connection, and the connection over TCP.

Trio's own stream lacks three things. Its calls cost a turn of the scheduler, even if bytes are there. It does
not tell how much of an interrupted `send_all` the kernel took, but every answer must be counted. It cannot
reset a connection: without a reset, the kernel keeps unread answers for minutes. So reading, sending and
waiting are separate calls here, and only waiting calls wait.
"""

import socket
import struct
import sys
from abc import abstractmethod
from contextlib import suppress
from typing import Any

import trio

# The size of one read bounds the memory and the time of a client: its answers are at most 2.4 times as large,
# and the next read waits until the client has taken them.
RECEIVE_BYTES = 4 * 1024

# At the end, up to this much input is read and dropped: closing with unread input would make the kernel send
# a reset, and the client would lose its last answer.
LINGER_BYTES = 1024 * 1024

# l_onoff = 1, l_linger = 0: close() sends RST and drops unsent bytes (socket(7), SO_LINGER).
_LINGER_NONE = struct.pack("ii", 1, 0)


class HandshakeError(Exception):
    """A handshake has failed. The text says why, in the words of the library."""


class ClientStream(trio.abc.AsyncResource):
    """An accepted connection. One task at a time may use it.

    taken: how many bytes of the data being sent can arrive.
    secured: whether there is a handshake before the first line.

    Every call raises trio.BrokenResourceError if it finds the connection broken.
    """

    __slots__ = ()

    taken: int
    secured = False

    @abstractmethod
    def peer(self) -> tuple[Any, ...] | None:
        """Return the client's socket address; None if it is gone."""

    @abstractmethod
    def receive_now(self, most: int) -> bytes | None:
        """Return up to `most` bytes that have arrived; b"" at the end of the stream, None if none have."""

    @abstractmethod
    async def wait_readable(self) -> None:
        """Wait until `receive_now` may return bytes; always a checkpoint."""

    @abstractmethod
    def send_now(self, data: bytes) -> bool:
        """Send what the kernel takes; False if there is a rest, which must be flushed."""

    @abstractmethod
    def flush_now(self) -> bool:
        """Send what the kernel takes of the rest; False if there is still a rest."""

    @abstractmethod
    async def wait_writable(self) -> None:
        """Wait until the kernel has room."""

    @abstractmethod
    async def finish(self) -> None:
        """End the sending side so that the client gets its last answer, even if it goes on sending.

        Waits until the client ends its side, so it needs a deadline.
        """

    @abstractmethod
    def close(self, *, reset: bool = False) -> None:
        """Close. The kernel still delivers what it took, unless `reset` is true."""

    async def flush(self) -> None:
        """Send the rest."""
        while not self.flush_now():
            await self.wait_writable()

    async def aclose(self) -> None:
        """Close. This does not wait, and is not a checkpoint."""
        self.close()


class TcpStream(ClientStream):
    """A TCP connection, on a non-blocking socket, which it owns.

    address: the client's; if it is not given, the socket is asked for it.
    sending: data being sent, of which the kernel has taken `taken` bytes; the rest must be flushed.
    """

    __slots__ = ("_address", "_sending", "_sock", "taken")

    def __init__(
        self,
        sock: socket.socket,
        address: tuple[Any, ...] | None = None,
        *,
        sending: bytes = b"",
        taken: int = 0,
    ) -> None:
        self._sock = sock
        self._address = address
        if address is None:
            with suppress(OSError):  # the client is gone already
                self._address = sock.getpeername()
        self._sending = sending
        self.taken = taken

    def peer(self) -> tuple[Any, ...] | None:
        """Return the client's socket address; None if the client was gone at the start."""
        return self._address

    def receive_now(self, most: int) -> bytes | None:
        """Return up to `most` bytes that have arrived; b"" at the end of the stream, None if none have."""
        try:
            return self._sock.recv(most)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise trio.BrokenResourceError(f"connection broken: {exc}") from exc

    async def wait_readable(self) -> None:
        """Wait until bytes have arrived, or the end of the stream."""
        await trio.lowlevel.wait_readable(self._sock)

    def send_now(self, data: bytes) -> bool:
        """Send what the kernel takes; False if there is a rest, which must be flushed."""
        try:
            taken = self._sock.send(data)
        except BlockingIOError:
            taken = 0
        except OSError as exc:
            self.taken = 0
            raise trio.BrokenResourceError(f"connection broken: {exc}") from exc
        if taken == len(data):
            return True
        self._sending, self.taken = data, taken
        return False

    def flush_now(self) -> bool:
        """Send what the kernel takes of the rest; False if there is still a rest."""
        if not self._sending:
            return True
        sending, before = self._sending, self.taken
        try:
            with memoryview(sending) as whole:
                self.taken += self._sock.send(whole[before:])
        except BlockingIOError:
            pass
        except OSError as exc:
            raise trio.BrokenResourceError(f"connection broken: {exc}") from exc
        if self.taken == len(sending):
            self._sending = b""
        return not self._sending

    async def wait_writable(self) -> None:
        """Wait until the kernel has room."""
        await trio.lowlevel.wait_writable(self._sock)

    async def finish(self) -> None:
        """End the sending side, and drop what the client still sends, up to a limit."""
        with suppress(OSError):  # the client has reset
            self._sock.shutdown(socket.SHUT_WR)
        unread = LINGER_BYTES
        while unread > 0:
            await self.wait_readable()
            data = self.receive_now(RECEIVE_BYTES)
            if data == b"":
                break
            unread -= len(data or b"")

    def acknowledge(self) -> None:
        """Acknowledge received bytes at once; a client may wait for that before it sends more."""
        if sys.platform == "linux":
            with suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def close(self, *, reset: bool = False) -> None:
        """Close; a second call does nothing."""
        if reset and self._sock.fileno() != -1:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._sock.close()


class SecuredStream(ClientStream):
    """A connection with a handshake before its first line."""

    __slots__ = ()

    secured = True

    @abstractmethod
    async def begin(self) -> None:
        """Shake hands; after a cancellation it may be called again. Raises HandshakeError."""

    @abstractmethod
    def may_go_on(self) -> bool:
        """Whether bytes have arrived for a handshake that was cancelled."""
