"""A client's connection over TLS, and the listener that such connections come from.

TLS is done by the standard library in memory; what it wants to say and hear goes through a `TcpStream`.
Trio's `SSLStream` would do for anyone who need not know how much has arrived. But after a send that was cut
short it can send nothing more, it cannot end one direction before it closes, and it keeps to itself the
alert that tells a client why its handshake failed.
"""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from triojam.listeners import ClientListener, DrainingListener
from triojam.streams import LINGER_SECONDS, RECEIVE_BYTES, ClientStream, HandshakeError, TcpStream, linger

# The most that one record can carry (RFC 8446, section 5.1). A record that is not whole cannot be decrypted.
RECORD_BYTES = 16 * 1024


class TlsStream(ClientStream):
    """The server's end of TLS over a TCP stream, which it owns.

    One task at a time may use it, as the handler's does: it receives or it sends. A cancelled call leaves
    it in order: what the kernel did not take is sent before anything else.

    bytes_sent: of the plain text; a record counts once the kernel has taken all of it.
    """

    def __init__(self, tcp: TcpStream, context: ssl.SSLContext) -> None:
        super().__init__(tcp.peer, tcp.source)
        self._tcp = tcp
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = b""  # encrypted, and not yet taken by the kernel
        self._farewell_said = False

    async def begin(self) -> None:
        """Shake hands. A client that leaves without a word, as a probe does, has not failed at it."""
        data = await self._tcp.receive_some(RECEIVE_BYTES)
        if not data:
            self._incoming.write_eof()
            return
        try:
            while not self._shake(data):
                await self._flush()
                data = await self._tcp.receive_some(RECEIVE_BYTES)
            await self._flush()
        except ssl.SSLError as exc:  # the alert that tells the client why goes out with the farewell
            raise HandshakeError(exc.reason or "the client left") from exc
        except trio.BrokenResourceError as exc:
            raise HandshakeError("the client broke the connection") from exc

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""
        if not data:
            await trio.lowlevel.checkpoint()
        with _translated(), memoryview(data) as rest:
            for start in range(0, len(rest), RECORD_BYTES):
                with rest[start : start + RECORD_BYTES] as record:
                    self._tls.write(record)
                    await self._flush()
                    self.bytes_sent += len(record)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room."""
        await self._tcp.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte and at most `max_bytes`, or b"" at the end of the stream.

        Each line says where it ends, so that the end of the TCP stream is as good an end as TLS's own
        (close_notify): neither can make half a line a request.
        """
        limit = max_bytes or RECEIVE_BYTES
        with _translated():
            while (received := self._decrypt(limit)) is None:
                await self._flush()
                data = await self._tcp.receive_some(RECEIVE_BYTES)
                self._feed(data)
        self.may_hold_more = len(received) == limit or self._tcp.may_hold_more
        return received

    async def finish(self) -> None:
        """End the sending side, of TLS and of TCP, and read away what the client still sends."""
        await self._say_farewell()
        await linger(self._tcp)

    async def aclose(self) -> None:
        """Say that this is the end, if the client takes that much, and close."""
        try:
            with (
                trio.move_on_after(LINGER_SECONDS),
                suppress(trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                await self._say_farewell()
        finally:
            await self._tcp.aclose()

    def reset(self) -> None:
        """Close at once with RST; what was not delivered is dropped."""
        self._tcp.reset()

    def _shake(self, data: bytes) -> bool:
        """Go on with the handshake; return whether it is done. Raises ssl.SSLError."""
        self._feed(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _decrypt(self, limit: int) -> bytes | None:
        """Return what there is, many records at a time; b"" for the end, None if more must be received."""
        received = b""
        try:
            while len(received) < limit and (data := self._tls.read(limit - len(received))):
                received += data
        except ssl.SSLWantReadError:
            return received or None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError:
            if not received:  # else it is there again at the next call
                raise
        return received

    async def _flush(self) -> None:
        """Send what TLS has to say."""
        self._unsent += self._outgoing.read()
        if not self._unsent:
            return
        before = self._tcp.bytes_sent
        try:
            await self._tcp.send_all(self._unsent)
        finally:
            self._unsent = self._unsent[self._tcp.bytes_sent - before :]

    async def _say_farewell(self) -> None:
        """Send close_notify, once; after a handshake that failed there is none to be sent."""
        if not self._farewell_said:
            self._farewell_said = True
            with suppress(ssl.SSLError):  # it would also wait for the client's
                self._tls.unwrap()
        await self._flush()


class TlsListener(DrainingListener):
    """Accepts from another listener, and puts TLS over it. The handshake is left to the client's own task.

    context: returns what new connections are to be encrypted with.
    """

    def __init__(self, tcp: ClientListener, context: Callable[[], ssl.SSLContext]) -> None:
        self._tcp = tcp
        self._context = context

    async def accept(self) -> TlsStream:
        """Return the next admitted client, counted as opened. Raises trio.ClosedResourceError."""
        return TlsStream(await self._tcp.accept(), self._context())

    async def drain(self) -> None:
        """Wait until nothing is queued."""
        await self._tcp.drain()

    async def aclose(self) -> None:
        """Close the listening socket."""
        await self._tcp.aclose()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as exc:
        raise trio.BrokenResourceError(f"TLS: {exc.reason}") from exc
