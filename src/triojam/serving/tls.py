"""A client's connection over TLS, and the listener that such connections come from.

TLS is done by the standard library in memory; what it wants to say and hear goes through a `TcpStream`.
Trio's `SSLStream` would do for anyone who need not know how much has arrived. But after a send that was cut
short it can send nothing more, it cannot end one direction before it closes, and it keeps to itself the
alert that tells a client why its handshake failed.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import trio

from triojam.serving.client import Client
from triojam.serving.listeners import ClientListener, DrainingListener
from triojam.serving.streams import RECEIVE_BYTES, HandshakeError, SecuredStream, TcpStream

# A record that is not whole cannot be decrypted, and may have a little more than 16 KiB (RFC 8446, 5.2).
READS_FOR_A_RECORD = 5
# What TLS may have to say to a client that asks for new keys again and again, and takes none, in bytes.
MOST_UNSAID = 16 * 1024
# A handshake costs the event loop a millisecond or more, so this many compute in one turn. A handshake that
# waits for its client takes no place.
HANDSHAKES_AT_ONCE = 4


class TlsStream(SecuredStream):
    """The server's end of TLS over a TCP stream, which it owns.

    taken: 0 until all of what is being sent is with the kernel: it is one record, of which a part is nothing.
    context: returns what to encrypt with. turn: what a handshake waits for before it computes.
    received: what has come already.
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
        self._tls: ssl.SSLObject  # there once the handshake has begun
        self._begun = False
        self._hungry = True  # nothing can be done without more from the client
        self._undone = False  # something has come that the handshake has not been gone on with
        self._take(received or None)
        self._said_farewell = False

    def peer(self) -> tuple[Any, ...] | None:
        """Return the client's socket address; None if it is gone."""
        return self._tcp.peer()

    async def begin(self) -> None:
        """Shake hands. A client that leaves without a word, as a probe does, has not failed at it."""
        try:
            while not await self._shake():
                await self.flush()
                await self._tcp.wait_readable()
            await self.flush()
        except ssl.SSLError as exc:  # the alert that tells the client why goes out with the farewell
            raise HandshakeError(exc.reason or "the client left") from exc
        except trio.BrokenResourceError as exc:
            raise HandshakeError("the client broke the connection") from exc
        # In TLS 1.3 nothing is to be said now, and a client with Nagle's algorithm on does not send its first
        # line before the end of its handshake is acknowledged (RFC 896): that would take 40 ms.
        if self._begun:
            self._tcp.acknowledge()

    def may_go_on(self) -> bool:
        """Whether something has arrived that a handshake which was cancelled can go on with."""
        self._take(self._tcp.receive_now(RECEIVE_BYTES) or None)
        return self._undone

    def receive_now(self, most: int) -> bytes | None:
        """Return the next record, as far as it has arrived whole.

        The end of the TCP stream is as good an end as TLS's own (close_notify): each line says where it ends,
        so neither can make half a line a request. One record a call: what is broken behind it must not keep
        it from being answered.
        """
        if not self._begun:
            return b""  # the end is all that came
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
            if self._outgoing.pending:  # TLS has something to say to that, a change of keys for example
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
        """Wait until `receive_now` may have something; a checkpoint in any case."""
        if self._hungry:
            await self._tcp.wait_readable()
        else:
            await trio.lowlevel.checkpoint()

    def send_now(self, data: bytes) -> bool:
        """Send what the kernel takes; False if that is not all, and the rest is to be flushed."""
        try:
            self._tls.write(data)
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError(f"TLS: {exc.reason}") from exc
        return self.flush_now()

    def flush_now(self) -> bool:
        """Send what the kernel takes of the rest; False if that is not all."""
        if not self._tcp.flush_now():
            return False
        data = self._outgoing.read()
        return not data or self._tcp.send_now(data)

    async def wait_writable(self) -> None:
        """Wait until the kernel has room."""
        await self._tcp.wait_writable()

    async def finish(self) -> None:
        """End the sending side, of TLS and of TCP, and read away what the client still sends."""
        self._say_farewell()
        await self.flush()
        await self._tcp.finish()

    def close(self, *, reset: bool = False) -> None:
        """Close, and say so first, as far as the kernel has room."""
        if not reset:
            self._say_farewell()
            with suppress(trio.BrokenResourceError):
                self.flush_now()
        self._tcp.close(reset=reset)

    async def _shake(self) -> bool:
        """Go on with the handshake, if something has come for it; return whether it is done."""
        data = None if self._undone else self._tcp.receive_now(RECEIVE_BYTES)
        if data == b"" and not (self._begun or self._incoming.pending):
            return True
        self._take(data)
        if not self._undone:
            return False
        async with self._turn:
            self._undone = False
            if (
                not self._begun
            ):  # not before: this alone costs a fifth of a millisecond, and many never say a word
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
        """Prepare close_notify, once; after a handshake that failed there is none to be sent."""
        if self._begun and not self._said_farewell:
            self._said_farewell = True
            with suppress(ssl.SSLError):  # it would also wait for the client's
                self._tls.unwrap()


class TlsListener(DrainingListener):
    """Accepts from another listener, and puts TLS over it. The handshake is left to the client's own task.

    context: returns what new connections are to be encrypted with. turn: shared by all handshakes.
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
        """Wait until nothing is queued."""
        await self._tcp.drain()

    async def aclose(self) -> None:
        """Close the listening socket."""
        await self._tcp.aclose()
