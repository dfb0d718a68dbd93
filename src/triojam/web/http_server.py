"""Serves HTTP on listening sockets. Each connection takes one of a few places.

When all places are taken, the connection that has waited longest for a request is closed. One source cannot
take all places. The host that got the last answer with status 200, a scraper, may have one place more.
"""

import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter

import trio

from triojam.core.admission import Admission, Policy, Source
from triojam.core.reasons import WebRejection
from triojam.web.http_connection import FIRST_SECONDS, Answer, HttpConnection, Request, Response

# Enough for some scrapers and people. `max_connections` leaves them their descriptors.
MOST_CONNECTIONS = 32
# For one IPv4 address or IPv6 /64.
MOST_A_SOURCE = 24
# The time for an answer that is being sent when the server stops.
GRACEFUL_SECONDS = 1.0
# After the last answer, this much is read and dropped: the kernel would reset a connection with unread input,
# and the client would lose the answer.
LINGER_SECONDS, LINGER_BYTES = 1.0, 256 * 1024
# The pause of accepting after an error such as EMFILE, and the number of clients that it accepts in one turn:
# a new connection has some turns to send its request before enough others have come to take its place.
ACCEPT_PAUSE = 0.1
ACCEPTS_AT_ONCE = 2


@dataclass(eq=False, slots=True)
class _Place:
    """A connection.

    waits_since: when it began to wait for its client, and may give way to another; None while it is served.
    idle: whether it waits for a request.
    """

    host: str
    source: Source
    waits_since: float | None
    idle: bool = True
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def waits(self, begins: bool) -> None:  # noqa: FBT001  # the only argument
        """Note that the connection begins or ends to wait for a request."""
        self.idle = begins
        self.sends(begins)

    def sends(self, begins: bool) -> None:  # noqa: FBT001  # the only argument
        """Note that the connection begins or ends to wait for its client in another way."""
        self.waits_since = trio.current_time() if begins else None


class HttpServer:
    """Serves requests.

    answer: makes the response to a request. reject: counts connections and requests that are turned away.
    failed: is called while an unexpected exception is handled. tls: returns the context of new connections;
    None = no TLS. longest_body: of a request, in bytes.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        reject: Callable[[WebRejection], None] = lambda _reason: None,
        failed: Callable[[], None] = lambda: None,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        longest_body: int = 0,
    ) -> None:
        self._answer = answer
        self._reject = reject
        self._failed = failed
        self._tls = tls
        self._longest_body = longest_body
        self._places: set[_Place] = set()
        self._sources = Admission(Policy(connections_per_source=MOST_A_SOURCE))
        self._served_last = ""  # the host of the last answer with status 200

    async def serve(
        self,
        sockets: Iterable[socket.socket],
        *,
        stop: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on listening sockets, which are closed at the end, until `stop` is set.

        Reports once it accepts.
        """
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for sock in sockets:
                    accepting.start_soon(self._accept, sock, connections)
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            connections.cancel_scope.deadline = trio.current_time() + GRACEFUL_SECONDS
            for place in self._places:
                if place.idle:
                    place.scope.cancel()

    async def _accept(self, listening: socket.socket, connections: trio.Nursery) -> None:
        with listening:
            listening.setblocking(False)  # noqa: FBT003  # the standard library's signature
            while True:
                await trio.lowlevel.wait_readable(listening)
                if self._accept_some(listening, connections):
                    await trio.sleep(ACCEPT_PAUSE)

    def _accept_some(self, listening: socket.socket, connections: trio.Nursery) -> bool:
        """Take the next connections; return whether accepting must pause."""
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                sock, address = listening.accept()
            except BlockingIOError:
                return False
            except OSError:
                return True
            if (place := self._find_place(address[0])) is None:
                sock.close()
            else:
                connections.start_soon(self._converse, sock, place)
        return False

    def _find_place(self, host: str) -> _Place | None:
        """Return a place for a new connection, perhaps that of another one; None if there is none."""
        source = self._sources.enter(host)
        spare = host == self._served_last
        refusal: WebRejection | None = None
        if source.connections > MOST_A_SOURCE + spare:
            refusal = WebRejection.PER_SOURCE
        elif len(self._places) >= MOST_CONNECTIONS + spare:
            refusal = WebRejection.BUSY
        if refusal is not None:
            self._reject(refusal)
            waiting = [
                (place.waits_since, place)
                for place in self._places
                if place.waits_since is not None and (refusal is WebRejection.BUSY or place.source is source)
            ]
            if not waiting:
                self._sources.leave(source)
                return None
            _, longest = min(waiting, key=itemgetter(0))
            longest.scope.cancel()
            self._give_back(longest)
        place = _Place(host, source, trio.current_time())
        self._places.add(place)
        return place

    def _give_back(self, place: _Place) -> None:
        if place in self._places:
            self._places.remove(place)
            self._sources.leave(place.source)

    async def _converse(self, sock: socket.socket, place: _Place) -> None:
        async def answer(request: Request) -> Response:
            response = await self._answer(request)
            if response.status == 200:
                self._served_last = place.host
            return response

        tcp = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            # A client that breaks the connection, or TLS, ends its own connection only.
            with place.scope, suppress(trio.BrokenResourceError, OSError):
                await self._serve_stream(tcp, place, answer)
        except Exception:  # noqa: BLE001  # a bug in one connection must not end the server
            self._failed()
        finally:
            self._give_back(place)
            await trio.aclose_forcefully(tcp)

    async def _serve_stream(self, tcp: trio.SocketStream, place: _Place, answer: Answer) -> None:
        stream: trio.abc.Stream = tcp
        tls: trio.SSLStream[trio.SocketStream] | None = None
        if (context := self._tls()) is not None:
            stream = tls = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
            with trio.move_on_after(FIRST_SECONDS) as handshake:
                await tls.do_handshake()
            if handshake.cancelled_caught:
                return
        connection = HttpConnection(
            stream,
            place.host,
            answer,
            waits=place.waits,
            sends=place.sends,
            reject=self._reject,
            failed=self._failed,
            longest_body=self._longest_body,
        )
        await connection.run()
        place.sends(True)  # noqa: FBT003  # the last answer is sent: from now on it may give way
        if tls is not None:
            await _end_tls(tls)
        await _linger(tcp)


async def _end_tls(tls: trio.SSLStream[trio.SocketStream]) -> None:
    """Send close_notify, so that the client knows that its answer is whole."""
    # The client's close_notify may come or not. Other data from it would be an error of TLS.
    with trio.move_on_after(LINGER_SECONDS), suppress(trio.BrokenResourceError):
        await tls.unwrap()


async def _linger(tcp: trio.SocketStream) -> None:
    """End the sending side; read and drop what the client still sends, within limits."""
    await tcp.send_eof()
    unread = LINGER_BYTES
    with trio.move_on_after(LINGER_SECONDS):
        while unread > 0 and (data := await tcp.receive_some()):
            unread -= len(data)
