"""The portable path: a Trio listener that counts, and refuses what is over the cap before a task exists."""

import selectors
import socket
from abc import abstractmethod
from collections import deque

import trio

from triojam.accepting import ACCEPT_PAUSE, accept_some, prepare
from triojam.reasons import Disconnect
from triojam.served import Client
from triojam.service import Service
from triojam.streams import RECEIVE_BYTES, TcpStream

# One that needs no descriptor of its own: there may be none left.
QueueSelector = getattr(selectors, "PollSelector", selectors.SelectSelector)

# How long a flood of new connections may keep the accept queue from being empty, in seconds.
LAST_ACCEPTS = 1.0


class DrainingListener(trio.abc.Listener[Client]):
    """A listener that is told to come to its end before it is closed: closing resets what is queued."""

    @abstractmethod
    async def drain(self) -> None:
        """Leave nobody behind who has connected, while another task goes on calling `accept`."""


class ClientListener(DrainingListener):
    """Accepts clients from one listening socket, which it owns.

    tell: whether those that are not admitted are told why.
    shared: another process has the socket, too, and sees to it that who is queued will be served.
    """

    def __init__(
        self, sock: socket.socket, service: Service, *, tell: bool = True, shared: bool = False
    ) -> None:
        prepare(sock)
        self.socket = sock
        self._service = service
        self._tell = tell
        self._shared = shared
        self._accepted: deque[Client] = deque()

    async def accept(self) -> Client:
        """Return the next admitted client, counted as opened. No accept error leaves, only its count.

        Raises trio.ClosedResourceError once the listener is closed.

        Those that were queued together are returned one after the other without a checkpoint between them, so
        that `trio.serve_listeners` starts them all in one turn. With one client a turn, a newcomer would wait
        for as many turns as there are clients before it. A turn has `accepting.ACCEPTS_AT_ONCE` at most.
        """
        while not self._accepted:
            if self.socket.fileno() == -1:
                raise trio.ClosedResourceError("this listener was closed")
            await trio.lowlevel.wait_readable(self.socket)
            if self._accept_turn() and not self._accepted:  # those that were admitted do not wait
                await trio.sleep(ACCEPT_PAUSE)
        return self._accepted.popleft()

    async def drain(self) -> None:
        """Wait until nothing is queued, or, where others will serve it, for nothing."""
        if self._shared:
            return
        with QueueSelector() as queue, trio.move_on_after(LAST_ACCEPTS):
            queue.register(self.socket.fileno(), selectors.EVENT_READ)
            await trio.lowlevel.checkpoint()
            while queue.select(timeout=0):
                await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the listening socket; the kernel resets what is queued on it."""
        if self.socket.fileno() != -1:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        while self._accepted:
            self._accepted.popleft().close(Disconnect.DRAIN)
        await trio.lowlevel.checkpoint()

    def _accept_turn(self) -> bool:
        """Accept what one turn may; return whether it failed in a way that lasts."""
        accepted = accept_some(self.socket, self._service, tell=self._tell)
        now = trio.current_time()
        for each in accepted.clients:
            client = Client(self._service, TcpStream(each.sock, each.address), each.source, now)
            try:
                first = client.stream.receive_now(RECEIVE_BYTES)
            except trio.BrokenResourceError:
                client.close(Disconnect.RESET)
                continue
            if first == b"":  # a probe, which is gone already: not worth a task
                client.close(Disconnect.EOF)
                continue
            client.received = first or b""
            self._accepted.append(client)
        return accepted.failed
