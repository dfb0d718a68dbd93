"""A client's connection: what the handler asks of one, and the one over TCP.

Trio's own stream would do, but for three things. Each of its calls takes a turn of the scheduler, although
the bytes are there or fit; it does not say how much of an interrupted `send_all` the kernel took, and the
accounts must be right to the last answer; and it has only one way to close, where a client that does not take
its answers must be reset, or the kernel keeps them for minutes. So here reading, sending and waiting are
calls of their own, and only the last one waits.
"""

import socket
import struct
import sys
from abc import abstractmethod
from contextlib import suppress
from typing import Any

import trio

# One read, and so one batch of answers (at most 2.4 times as large), bounds what a client costs in memory
# and in time: the next read waits until the answers to this one are taken.
RECEIVE_BYTES = 4 * 1024

# At the end so much is read away, so that closing with unread input does not turn the last answer into a
# reset for the client.
LINGER_BYTES = 1024 * 1024

# l_onoff = 1, l_linger = 0: close() sends RST and drops what is unsent (socket(7), SO_LINGER).
_LINGER_NONE = struct.pack("ii", 1, 0)


class HandshakeError(Exception):
    """What comes before a client's first line has failed. The text says why, in the words of the library."""


class ClientStream(trio.abc.AsyncResource):
    """An accepted connection. One task at a time may use it.

    taken: of what is being sent, how many bytes can arrive whole.
    secured: whether there is a handshake before the first line.

    Whatever finds the connection broken raises trio.BrokenResourceError.
    """

    __slots__ = ()

    taken: int
    secured = False

    @abstractmethod
    def peer(self) -> tuple[Any, ...] | None:
        """Return the client's socket address; None if it is gone."""

    @abstractmethod
    def receive_now(self, most: int) -> bytes | None:
        """Return at most `most` bytes that have arrived; b"" at the end of the stream, None for nothing."""

    @abstractmethod
    async def wait_readable(self) -> None:
        """Wait until `receive_now` may have something; a checkpoint in any case."""

    @abstractmethod
    def send_now(self, data: bytes) -> bool:
        """Send what the kernel takes; False if that is not all, and the rest is to be flushed."""

    @abstractmethod
    def flush_now(self) -> bool:
        """Send what the kernel takes of the rest; False if that is not all."""

    @abstractmethod
    async def wait_writable(self) -> None:
        """Wait until the kernel has room."""

    @abstractmethod
    async def finish(self) -> None:
        """End the sending side so that the client gets what was sent last, although it may go on sending.

        Waits for the end of the client's side, so it needs a deadline.
        """

    @abstractmethod
    def close(self, *, reset: bool = False) -> None:
        """Close. The kernel goes on delivering what it took, unless it is to reset the connection."""

    async def flush(self) -> None:
        """Send the rest."""
        while not self.flush_now():
            await self.wait_writable()

    async def aclose(self) -> None:
        """Close. There is nothing to wait for, so this is no checkpoint."""
        self.close()


class TcpStream(ClientStream):
    """A TCP connection, on a non-blocking socket, which it owns.

    address: the client's; without it the system is asked.
    sending: what is being sent, of which `taken` bytes are with the kernel; the rest is to be flushed.
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
        """Return the client's socket address; None if it was gone before it could be asked for."""
        return self._address

    def receive_now(self, most: int) -> bytes | None:
        """Return at most `most` bytes that have arrived; b"" at the end of the stream, None for nothing."""
        try:
            return self._sock.recv(most)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise trio.BrokenResourceError(f"connection broken: {exc}") from exc

    async def wait_readable(self) -> None:
        """Wait until something has arrived, the end included."""
        await trio.lowlevel.wait_readable(self._sock)

    def send_now(self, data: bytes) -> bool:
        """Send what the kernel takes; False if that is not all, and the rest is to be flushed."""
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
        """Send what the kernel takes of the rest; False if that is not all."""
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
        """End the sending side, and read away what the client still sends, up to a limit."""
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
        """Acknowledge at once what has arrived. A client may wait for that with what it says next."""
        if sys.platform == "linux":
            with suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def close(self, *, reset: bool = False) -> None:
        """Close, once."""
        if reset and self._sock.fileno() != -1:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._sock.close()


class SecuredStream(ClientStream):
    """A connection with a handshake before its first line."""

    __slots__ = ()

    secured = True

    @abstractmethod
    async def begin(self) -> None:
        """Shake hands; to be called again after it was cancelled. Raises HandshakeError."""

    @abstractmethod
    def may_go_on(self) -> bool:
        """Whether something has arrived that a handshake which was cancelled can go on with."""
