"""Serves an ASGI application with Hypercorn's Trio server, within limits.

Hypercorn's own worker accepts without a limit, and shields its sends from cancellation. So this module uses
only its server for one connection, with a listener and streams of its own: few connections, a deadline for
each send, and a stop that ends them all. A scraper cannot use up the descriptors or delay the process's end.
"""

import logging
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from starlette.types import ASGIApp

# Enough for scrapers and browsers, and within the descriptors that the time service leaves free.
MOST_CONNECTIONS = 32
# Pause of accepting after an error such as EMFILE, in seconds.
ACCEPT_PAUSE = 0.1
# Seconds for a client to send anything, and to receive a page. A scrape takes milliseconds.
KEEP_ALIVE_SECONDS = 75.0  # longer than the usual scrape intervals, so that a scraper keeps its connection
SEND_SECONDS = 10.0
# Seconds for a page that is being sent when the server stops.
GRACEFUL_SECONDS = 1.0
# Seconds to start the answer to a request that came just before the end of the stream.
AFTER_THE_END_SECONDS = 0.1


class _Stream(trio.abc.HalfCloseableStream):
    """A TCP stream with a deadline for each send, even if the sender is shielded from cancellation."""

    def __init__(self, sock: trio.socket.SocketType, streams: set["_Stream"]) -> None:
        self._inner = trio.SocketStream(sock)
        self._streams = streams
        self._sending = trio.CancelScope()
        self.socket = sock  # Hypercorn asks it for its addresses
        self.ended = trio.Event()  # nothing more can be received
        streams.add(self)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.CancelScope(deadline=trio.current_time() + SEND_SECONDS) as self._sending:
            await self._inner.send_all(data)
        if self._sending.cancelled_caught:
            raise trio.BrokenResourceError("the client does not take the page")

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._inner.receive_some(max_bytes)
        finally:
            if not data:  # the end, or an exception
                self.ended.set()
        return data

    async def aclose(self) -> None:
        self._streams.discard(self)
        await self._inner.aclose()

    def close_at(self, deadline: float) -> None:
        """Cancel the current send at `deadline`, if it still runs then."""
        self._sending.deadline = min(self._sending.deadline, deadline)


class _Listener(trio.abc.Listener[_Stream]):
    """Accepts up to the limit, and closes other connections; an error only delays the next accept."""

    def __init__(self, sock: trio.socket.SocketType, streams: set[_Stream]) -> None:
        self._socket = sock
        self._streams = streams

    async def accept(self) -> _Stream:
        while True:
            try:
                sock, _ = await self._socket.accept()
            except OSError:
                if self._socket.fileno() == -1:
                    raise trio.ClosedResourceError from None
                await trio.sleep(ACCEPT_PAUSE)
                continue
            if len(self._streams) < MOST_CONNECTIONS:
                return _Stream(sock, self._streams)
            sock.close()

    async def aclose(self) -> None:
        self._socket.close()
        await trio.lowlevel.checkpoint()


async def serve(  # noqa: PLR0913  # one is for Trio
    app: ASGIApp,
    sockets: Iterable[trio.socket.SocketType],
    *,
    stop: trio.Event,
    error_log: logging.Logger,
    tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on listening sockets, which are closed at the end, until `stop` is set.

    tls: returns the TLS context for new connections, or None for plain HTTP.

    Calls `task_status.started` when it accepts. An exception in the app answers 500 and goes to `error_log`.
    """
    config = Config()
    config.errorlog = error_log
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.read_timeout = int(KEEP_ALIVE_SECONDS)
    config.ssl_handshake_timeout = SEND_SECONDS
    config.h2_max_concurrent_streams = 1
    config.include_server_header = False
    wrapped = ASGIWrapper(cast(ASGIFramework, app))
    worker = WorkerContext(None)
    streams: set[_Stream] = set()

    async def handle(stream: _Stream) -> None:
        async def converse() -> None:
            secured = (context := tls()) and trio.SSLStream(stream, context, server_side=True)
            await TCPServer(wrapped, config, worker, ConnectionState({}), cast(Any, secured or stream))
            conversation.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as conversation:
                conversation.start_soon(converse)
                await stream.ended.wait()
                # Without this, Hypercorn keeps the connection until the keep-alive timeout.
                await trio.sleep(AFTER_THE_END_SECONDS)
                conversation.cancel_scope.cancel()
        except Exception:  # noqa: BLE001  # an error in one connection must not end the others
            error_log.exception("web connection failed")

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            listeners = [_Listener(sock, streams) for sock in sockets]
            await accepting.start(
                partial(trio.serve_listeners, handle, listeners, handler_nursery=connections)
            )
            task_status.started()
            try:
                await stop.wait()
            finally:
                ends = trio.current_time() + (GRACEFUL_SECONDS if stop.is_set() else 0.0)
                for stream in streams:
                    stream.close_at(ends)
            accepting.cancel_scope.cancel()
        await worker.terminated.set()
        connections.cancel_scope.deadline = ends
