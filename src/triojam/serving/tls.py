"""A client's connection over TLS, and the listener for such connections.

The standard library does TLS in memory; its input and output go through a `TcpStream`. Trio's `SSLStream` is
not enough: it cannot send again after an interrupted send, it cannot end one direction before it closes, it
does not tell how much was sent, and it does not send the alert that tells a client why its handshake failed.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import trio

from triojam.serving.client import Client
from triojam.serving.listeners import ClientListener, DrainingListener
from triojam.serving.streams import RECEIVE_BYTES, HandshakeError, SecuredStream, TcpStream

# Only a whole record can be decrypted, and a record may have a little more than 16 KiB (RFC 8446, 5.2).
READS_FOR_A_RECORD = 5
# The most bytes that TLS may keep for a client that asks for new keys and does not read them.
MOST_UNSAID = 16 * 1024
# A handshake blocks the event loop for a millisecond or more, so at most this many compute in one turn.
HANDSHAKES_AT_ONCE = 4


class TlsStream(SecuredStream):
    """The server's end of TLS over a TCP stream, which it owns.

    taken: always 0, because a part of a record cannot be decrypted.
    context: returns the present context. turn: limits how many handshakes compute at once.
    received: bytes that have been read already.
    """

    __slots__ = (
        "_begun", "_context", "_hungry", "_incoming", "_outgoing", "_said_farewell", "_tcp", "_tls", "_turn",
        "_undone",
    )  # fmt: skip

    taken = 0

    def __init__(
        self,
        tcp: TcpStream,
        context: Callable[[], ssl.SSLContext],
        turn: trio.CapacityLimiter,
        received: bytes = b"",
    ) -> None:
        self._tcp = tcp
        self._context = context
        self._turn = turn
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject  # set when the handshake begins
        self._begun = False
        self._hungry = True  # whether TLS needs more bytes from the client
        self._undone = False  # whether bytes have come that the handshake has not used
        self._take(received or None)
        self._said_farewell = False

    def peer(self) -> tuple[Any, ...] | None:
        """Return the client's socket address; None if it is gone."""
        return self._tcp.peer()

    async def begin(self) -> None:
        """Shake hands. A client that leaves without sending anything, as a probe does, is not a failure."""
        try:
            while not await self._shake():
                await self.flush()
                await self._tcp.wait_readable()
            await self.flush()
        except ssl.SSLError as exc:  # the alert to the client is sent when the connection is closed
            raise HandshakeError(exc.reason or "the client left") from exc
        except trio.BrokenResourceError as exc:
            raise HandshakeError("the client broke the connection") from exc
        # In TLS 1.3 the server sends nothing now. With Nagle's algorithm on, a client sends its first line
        # only after an acknowledgement of its handshake (RFC 896), which the kernel would delay by 40 ms.
        if self._begun:
            self._tcp.acknowledge()

    def may_go_on(self) -> bool:
        """Whether bytes have arrived for a handshake that was cancelled."""
        self._take(self._tcp.receive_now(RECEIVE_BYTES) or None)
        return self._undone

    def receive_now(self, most: int) -> bytes | None:
        """Return the next record; None if it has not arrived whole.

        The end of the TCP stream is treated as TLS's own end (close_notify): a line has its own end, so
        neither can turn half a line into a request. A call returns one record, so that a record is answered
        even if the next one is broken.
        """
        if not self._begun:
            return b""  # only the end of the stream came
        for _ in range(READS_FOR_A_RECORD):
            try:
                received = self._tls.read(most)
            except ssl.SSLWantReadError:
                self._hungry = True
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return b""
            except ssl.SSLError as exc:
                raise trio.BrokenResourceError(f"TLS: {exc.reason}") from exc
            else:
                self._hungry = not (self._incoming.pending or self._tls.pending())
                return received
            if self._outgoing.pending:  # TLS replies, with new keys for example
                if not self.flush_now() and self._outgoing.pending > MOST_UNSAID:
                    raise trio.BrokenResourceError("TLS: the client does not take what it has asked for")
                break
            data = self._tcp.receive_now(RECEIVE_BYTES)
            if data is None:
                break
            self._take(data)
            self._hungry = False
        return None

    async def wait_readable(self) -> None:
        """Wait until `receive_now` may return bytes; always a checkpoint."""
        if self._hungry:
            await self._tcp.wait_readable()
        else:
            await trio.lowlevel.checkpoint()

    def send_now(self, data: bytes) -> bool:
        """Send what the kernel takes; False if there is a rest, which must be flushed."""
        try:
            self._tls.write(data)
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError(f"TLS: {exc.reason}") from exc
        return self.flush_now()

    def flush_now(self) -> bool:
        """Send what the kernel takes of the rest; False if there is still a rest."""
        if not self._tcp.flush_now():
            return False
        data = self._outgoing.read()
        return not data or self._tcp.send_now(data)

    async def wait_writable(self) -> None:
        """Wait until the kernel has room."""
        await self._tcp.wait_writable()

    async def finish(self) -> None:
        """End the sending side of TLS and of TCP, and drop what the client still sends."""
        self._say_farewell()
        await self.flush()
        await self._tcp.finish()

    def close(self, *, reset: bool = False) -> None:
        """Close; without `reset`, try to send close_notify first."""
        if not reset:
            self._say_farewell()
            with suppress(trio.BrokenResourceError):
                self.flush_now()
        self._tcp.close(reset=reset)

    async def _shake(self) -> bool:
        """Continue the handshake, if bytes have come for it; return whether it is done."""
        data = None if self._undone else self._tcp.receive_now(RECEIVE_BYTES)
        if data == b"" and not (self._begun or self._incoming.pending):
            return True
        self._take(data)
        if not self._undone:
            return False
        async with self._turn:
            self._undone = False
            # Only now: this takes 0.2 ms, and many clients never send anything.
            if not self._begun:
                self._tls = self._context().wrap_bio(self._incoming, self._outgoing, server_side=True)
                self._begun = True
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                return False
        self._hungry = not self._incoming.pending
        return True

    def _take(self, data: bytes | None) -> None:
        if data:
            self._incoming.write(data)
        elif data is not None:
            self._incoming.write_eof()
        self._undone = self._undone or data is not None

    def _say_farewell(self) -> None:
        """Prepare close_notify, once; after a failed handshake there is none."""
        if self._begun and not self._said_farewell:
            self._said_farewell = True
            with suppress(ssl.SSLError):  # raised because the client's close_notify is missing
                self._tls.unwrap()


class TlsListener(DrainingListener):
    """Accepts clients of another listener, and puts TLS over their streams. Their own tasks shake hands.

    context: returns the context for new connections. turn: shared by all handshakes.
    """

    def __init__(
        self, tcp: ClientListener, context: Callable[[], ssl.SSLContext], turn: trio.CapacityLimiter
    ) -> None:
        self._tcp = tcp
        self._context = context
        self._turn = turn

    async def accept(self) -> Client:
        """Return the next admitted client, counted as opened. Raises trio.ClosedResourceError."""
        client = await self._tcp.accept()
        tcp = cast(TcpStream, client.stream)
        client.stream = TlsStream(tcp, self._context, self._turn, client.received)
        client.received = b""
        return client

    async def drain(self) -> None:
        """Wait until the queue is empty."""
        await self._tcp.drain()

    async def aclose(self) -> None:
        """Close the listening socket."""
        await self._tcp.aclose()
