"""Serves HTTP on listening sockets: few connections, each with a place, and none that can hold up the others.

When all places are taken, the connection that has been idle longest gives way. One source cannot take all of
them, and one place more is kept for the source that got the last good answer: the scraper.
"""

import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from triojam.core.admission import Admission, Policy, Source
from triojam.core.reasons import WebRejection
from triojam.web.http_connection import Answer, HttpConnection, Request, Response

# A handful of scrapers and people, within the descriptors that are kept from the time service's clients.
MOST_CONNECTIONS = 32
# For one IPv4 address or IPv6 /64.
MOST_A_SOURCE = 24
# How long an answer that is on its way when the server stops may take.
GRACEFUL_SECONDS = 1.0
# After the last answer this much is read away: closing with unread input would reset the answer.
LINGER_SECONDS, LINGER_BYTES = 1.0, 256 * 1024
# How long accepting rests after an error such as EMFILE, and how many clients it takes in one step.
ACCEPT_PAUSE = 0.1
ACCEPTS_AT_ONCE = 16


@dataclass(eq=False, slots=True)
class _Place:
    """A connection. idle_since: when it began to wait for a request; None while it is served."""

    host: str
    source: Source
    idle_since: float | None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def idle(self, waits: bool) -> None:  # noqa: FBT001  # the only argument
        """Note that the connection begins or ends to wait for a request."""
        self.idle_since = trio.current_time() if waits else None


class HttpServer:
    """Serves requests.

    answer: makes the response to a request. reject: counts what was turned away. failed: is called while an
    exception of `answer` is handled. tls: returns how to encrypt new connections; None = not at all.
    longest_body: of a request, in bytes.
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
        self._served_last = ""  # the host that got the last answer with status 200

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
                if place.idle_since is not None:
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
        if self._sources.refusal(host, full=False) is not None:
            self._reject(WebRejection.PER_SOURCE)
            return None
        if len(self._places) >= MOST_CONNECTIONS + (host == self._served_last):
            idle = [place for place in self._places if place.idle_since is not None]
            if not idle:
                self._reject(WebRejection.BUSY)
                return None
            longest = min(idle, key=lambda place: place.idle_since or 0.0)
            longest.scope.cancel()
            self._give_back(longest)
        place = _Place(host, self._sources.enter(host), trio.current_time())
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
        context = self._tls()
        stream: trio.abc.Stream = tcp
        if context is not None:
            stream = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
        connection = HttpConnection(
            stream,
            place.host,
            answer,
            idle=place.idle,
            reject=self._reject,
            failed=self._failed,
            longest_body=self._longest_body,
        )
        try:
            # A client that breaks the connection, or TLS, ends it, and nothing else.
            with place.scope, suppress(trio.BrokenResourceError, OSError):
                await connection.run()
                await _linger(tcp)
        finally:
            self._give_back(place)
            await trio.aclose_forcefully(tcp)


async def _linger(tcp: trio.SocketStream) -> None:
    """End the sending side, and read away what the client still sends, within limits."""
    await tcp.send_eof()
    unread = LINGER_BYTES
    with trio.move_on_after(LINGER_SECONDS):
        while unread > 0 and (data := await tcp.receive_some()):
            unread -= len(data)
