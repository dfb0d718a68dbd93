"""The handler that serves every client, over every transport.

A task of the handler waits for the client's next bytes, reads them, and calls `Client.answer`, which decides
on them and sends the answers. If the kernel does not take all answers, the task waits for the client, and
reads nothing until the client has taken them. Each step is bounded; the rest is left for the client's next
turn, after all other clients.

`Deadlines.keep` keeps the deadlines: it cancels the wait of an overdue client. Before that client is closed,
its task reads once more, because the process may have stood still while bytes came.
"""

from contextlib import suppress

import trio

from triojam.core.admission import ANYONE
from triojam.core.protocol import REFUSALS, Connection
from triojam.core.proxy_header import HeaderError
from triojam.core.reasons import Disconnect, Refusal, SendError
from triojam.core.seldom import Seldom
from triojam.serving.client import Client
from triojam.serving.deadlines import DRAIN_WINDOW, LONGEST_PAUSE, Deadlines, Drain, Wait
from triojam.serving.newcomers import Relayed
from triojam.serving.service import Service
from triojam.serving.streams import RECEIVE_BYTES, HandshakeError, SecuredStream

# A bug that clients can provoke must not fill the log: one traceback in this time, in seconds.
LOG_SECONDS = 10.0
# After these ends, no last answer is on its way to the client.
_NO_LAST_ANSWER = (Disconnect.EOF, Disconnect.IDLE, Disconnect.SEND_TIMEOUT, *Refusal)


class Handler:
    """Serves clients: a task for each runs `handle`, and one task runs `keep_time`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._clients: set[Client] = set()
        self._deadlines: Deadlines[Client] = Deadlines(lambda: service.timeouts)
        self._draining = False
        self._failures = Seldom(LOG_SECONDS)

    async def keep_time(self) -> None:
        """Keep the deadlines of all clients, until cancelled."""
        await self._deadlines.keep()

    async def handle(self, client: Client) -> None:
        """Serve one client until its connection ends, and close the connection.

        The connection is counted as opened already; its end is counted here. Only trio.Cancelled leaves: any
        other exception ends this connection, is logged and counted, and does not affect other clients.
        """
        self._clients.add(client)
        reason: Disconnect | Refusal | None = None
        try:
            reason = await self._serve(client)
            if reason not in _NO_LAST_ANSWER and not (reason is Disconnect.DRAIN and client.silent):
                await self._part(client)
        except trio.BrokenResourceError:
            reason = Disconnect.RESET
            client.abandon(SendError.RESET, Connection.end_of_stream)  # an unfinished line is a request, too
            if client.stream.secured:  # the client may still be there, and read the TLS alert
                await self._part(client)
        except trio.Cancelled:
            reason = reason or Disconnect.DRAIN
            client.abandon(SendError.SHUTDOWN, Connection.drain)
            raise
        except Exception:
            reason = Disconnect.INTERNAL_ERROR
            self._service.counters.internal_errors += 1
            client.abandon(SendError.RESET, Connection.end_of_stream)
            if failures := self._failures.count(trio.current_time()):
                self._service.log.exception("connection failed", peer=client.peer, failures=failures)
        finally:
            self._clients.remove(client)
            self._deadlines.forget(client)
            client.close(reason or Disconnect.INTERNAL_ERROR)

    def enter_sources(self) -> None:
        """Count the open connections by source; without limits by source they were not counted."""
        for client in self._clients:
            if client.source is ANYONE:
                client.source = self._service.admission.enter(client.host)

    def settings_changed(self) -> None:
        """Apply new timeouts to the present waits."""
        self._deadlines.wake()

    def drain(self, ends: float) -> None:
        """Answer all received requests, then close the connections.

        Idle clients are closed almost at once. A client may finish its line until shortly before `ends`, a
        time on Trio's clock.
        """
        self._draining = True
        self._deadlines.drain = Drain(trio.current_time(), ends)
        self._deadlines.wake()

    async def _serve(self, client: Client) -> Disconnect | Refusal:
        if client.relayed is not None and (end := await self._read_header(client, client.relayed)):
            return end
        if isinstance(client.stream, SecuredStream) and (
            end := await self._shake_hands(client, client.stream)
        ):
            return end
        if client.owed and not await self._flush(client):
            return Disconnect.SEND_TIMEOUT
        if self._is_late(client) and b"\n" not in client.received:
            # The lane handed it over for that reason. It must not wait behind punctual clients.
            client.late = client.answer(client.received, trio.current_time())
        self._expect_more(client, client.since)
        while True:
            data = client.received or client.stream.receive_now(RECEIVE_BYTES)
            client.received = b""
            # Another piece of a line does not extend its time.
            piece = data and client.first_byte is not None and b"\n" not in data
            if client.late and (data is None or piece) and (end := await self._give_up(client)):
                return end
            client.late = False
            with trio.CancelScope() as client.scope:
                if end := await self._converse(client, data):
                    return end

    def _is_late(self, client: Client) -> bool:
        """Whether the client's unfinished line is overdue."""
        began = client.first_byte
        return began is not None and trio.current_time() >= began + self._service.timeouts.line

    async def _read_header(self, client: Client, relayed: Relayed) -> Disconnect | Refusal | None:
        """Read the PROXY header, within the time of a line, and admit the client that it names.

        Returns why the connection ends, or None to go on.
        """
        if not relayed.waits:
            return None
        try:
            while not relayed.read():
                if client.late:
                    if trio.current_time() >= client.since + self._service.timeouts.line:
                        return Refusal.PROXY_HEADER
                    if self._draining:
                        return Disconnect.DRAIN
                    client.late = False  # a reload has extended the timeout
                self._deadlines.expect(client, Wait.HEADER, client.since)
                with trio.CancelScope() as client.scope:
                    await client.stream.wait_readable()
        except HeaderError as exc:
            self._service.log.debug("bad PROXY header", proxy=client.peer, why=str(exc))
            return Refusal.PROXY_HEADER
        client.since = trio.current_time()
        admission = self._service.admission
        refusal = admission.refusal(relayed.host, full=False)  # it was counted when it was accepted
        if refusal is None:
            client.source = admission.enter(relayed.host)
        elif (text := REFUSALS[refusal]) and not client.stream.secured:
            with suppress(trio.BrokenResourceError):
                client.stream.send_now(text)
                client.stream.receive_now(RECEIVE_BYTES)  # closing with unread input would reset
        return refusal

    async def _shake_hands(self, client: Client, stream: SecuredStream) -> Disconnect | None:
        """Shake hands, within the time of a line. Return why the connection ends, or None to go on."""
        while True:
            self._deadlines.expect(client, Wait.HANDSHAKE, client.since)
            with trio.CancelScope() as client.scope:
                try:
                    await stream.begin()
                except HandshakeError as exc:
                    self._service.log.debug("handshake failed", peer=client.peer, why=str(exc))
                    return Disconnect.HANDSHAKE
                return None
            now = trio.current_time()
            stood_still = now - self._deadlines.of(Wait.HANDSHAKE, client.since) > 2 * LONGEST_PAUSE
            if stood_still and stream.may_go_on():
                client.since = now
            elif now >= client.since + self._service.timeouts.line:
                return Disconnect.LINE_TIMEOUT
            elif self._draining:
                return Disconnect.DRAIN

    async def _converse(self, client: Client, data: bytes | None) -> Disconnect | None:
        """Answer `data` and all that follows, until the client is late or its connection must end.

        Returns why the connection ends; None if the client is late.
        """
        wait_readable, receive_now = client.stream.wait_readable, client.stream.receive_now
        answer, now = client.answer, trio.current_time
        while True:
            if data is not None:
                sent = answer(data, now())
                if (not sent or client.end is not None or client.protocol.more) and (
                    end := await self._go_on(client, sent=sent)
                ):
                    return end
                if self._draining and now() >= self._deadlines.drain.began + DRAIN_WINDOW:
                    data = receive_now(RECEIVE_BYTES)
                    if data is not None:
                        client.received = data  # counted if the grace time ends now
                        await self._give_way(client)
                        continue
                    if client.first_byte is None:
                        return Disconnect.DRAIN
                self._expect_more(client, now())
            await wait_readable()
            data = receive_now(RECEIVE_BYTES)
            if client.late:  # bytes came at the moment of its deadline
                client.received = data or b""
                return None

    async def _give_way(self, client: Client) -> None:
        """Let other tasks run, before the next step for this client."""
        self._deadlines.forget(client)
        await trio.lowlevel.checkpoint()

    def _expect_more(self, client: Client, since: float) -> None:
        if client.first_byte is None:
            self._deadlines.expect(client, Wait.REQUEST, since)
        else:
            self._deadlines.expect(client, Wait.LINE, client.first_byte)

    async def _go_on(self, client: Client, *, sent: bool) -> Disconnect | None:
        """Decide on the rest of what was read. Return why the connection ends, or None to go on."""
        while True:
            if not sent and not await self._flush(client):
                return Disconnect.SEND_TIMEOUT
            if client.end is not None or not client.protocol.more:
                return client.end
            await self._give_way(client)
            sent = client.answer(b"", trio.current_time())

    async def _flush(self, client: Client) -> bool:
        """Wait until the client has taken its answers; return whether it has."""
        self._deadlines.expect(client, Wait.SEND, trio.current_time())
        outer, client.scope = client.scope, trio.CancelScope()
        with client.scope:
            await client.stream.flush()
        client.scope = outer
        if not client.stream.flush_now():
            client.lost(SendError.TIMEOUT)
            return False
        client.sent()
        client.late = False
        if client.first_byte is not None:
            client.first_byte = trio.current_time()  # nothing was read meanwhile
        return True

    async def _give_up(self, client: Client) -> Disconnect | None:
        """Decide about an overdue client. Return why the connection ends, or None to go on."""
        now = trio.current_time()
        line = client.first_byte is not None
        if now < self._deadlines.of(Wait.LINE if line else Wait.REQUEST, client.since):
            self._expect_more(client, client.since)  # a reload has extended the timeout
            return None
        if self._is_late(client):
            sent = client.give_up(Connection.line_timeout)
        elif self._draining:
            sent = client.give_up(Connection.drain)
        else:
            return Disconnect.IDLE
        return client.end if sent or await self._flush(client) else Disconnect.SEND_TIMEOUT

    async def _part(self, client: Client) -> None:
        """Wait until the client has its last answer and closes."""
        self._deadlines.expect(client, Wait.CLOSE, trio.current_time())
        # A reset by the client does not change the reason of the end.
        with trio.CancelScope() as client.scope, suppress(trio.BrokenResourceError):
            await client.stream.finish()
