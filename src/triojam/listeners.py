"""The portable path: a Trio listener that counts, and refuses what is over the cap before a task exists."""

import selectors
import socket
from abc import abstractmethod

import trio
from trio import socket as tsocket

from triojam.accepting import ACCEPT_PAUSE, admit, count_accept_error
from triojam.admission import Admission
from triojam.counters import Counters
from triojam.streams import ClientStream, TcpStream, format_address

# One that needs no descriptor of its own: there may be none to be had.
QueueSelector = getattr(selectors, "PollSelector", selectors.SelectSelector)

# How long a flood of new connections may keep the accept queue from being empty, in seconds.
LAST_ACCEPTS = 1.0


class DrainingListener(trio.abc.Listener[ClientStream]):
    """A listener that is told to come to its end before it is closed: closing resets what is queued."""

    @abstractmethod
    async def drain(self) -> None:
        """Leave nobody behind who has connected, while another task goes on calling `accept`."""


class ClientListener(DrainingListener):
    """Accepts clients from one listening socket, which it owns, up to the limit among the counters.

    tell: whether those that are not admitted are told why.
    shared: another process has the socket, too, and sees to it that who is queued will be served.
    """

    def __init__(  # what it asks, and what it is told of its clients and of its socket
        self,
        sock: tsocket.SocketType,
        *,
        counters: Counters,
        admission: Admission,
        tell: bool = True,
        shared: bool = False,
    ) -> None:
        self.socket = sock
        self._counters = counters
        self._admission = admission
        self._tell = tell
        self._shared = shared

    async def accept(self) -> TcpStream:
        """Return the next admitted client, counted as opened. No accept error leaves, only its count.

        Raises trio.ClosedResourceError once the listener is closed.
        """
        while True:
            try:
                sock, address = await self.socket.accept()
            except OSError as exc:
                if self.socket.fileno() == -1:
                    raise trio.ClosedResourceError("this listener was closed") from None
                if count_accept_error(self._counters, exc):
                    await trio.sleep(ACCEPT_PAUSE)
                continue
            plain = socket.socket(fileno=sock.detach())
            source = admit(self._counters, self._admission, plain, address, tell=self._tell)
            if source is not None:
                return TcpStream(trio.socket.from_stdlib_socket(plain), format_address(address), source)

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
        self.socket.close()
        await trio.lowlevel.checkpoint()
