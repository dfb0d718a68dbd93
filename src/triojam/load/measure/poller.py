"""Waits for sockets, and tells when each became readable.

With epoll, events are edge-triggered: each is reported once, so asking for new ones is cheap, and can be done
after every answer. So the moment at which an answer arrived is known even while others wait to be read.
Elsewhere, the standard library's selectors report a socket until it was read.
"""

import select
import selectors
import socket
import time
from typing import Generic, TypeVar

Key = TypeVar("Key")

_MOST_EVENTS = 64
# epoll waits for whole milliseconds, and ends up to one later.
_COARSE = 0.0025
# select(2) ends this much too late at most (timer slack); the rest is spent in asking.
_SLACK = 0.0001

# select(2) takes descriptors below this.
_SELECT_MOST = 1024

# END: after what can be read, the stream ends. Only epoll reports it.
READ, WRITE, END = 1, 2, 4


class _Meaning(dict[int, int]):
    """The events that the masks of epoll mean."""

    def __missing__(self, mask: int) -> int:
        ended = READ | END if mask & ~(select.EPOLLIN | select.EPOLLOUT) else 0
        read = READ if mask & select.EPOLLIN else 0
        self[mask] = ended | read | (WRITE if mask & select.EPOLLOUT else 0)
        return self[mask]


_MEANING = _Meaning()


def monotonic() -> float:
    """Return the time by which a load measures, in seconds; all processes of a machine share it."""
    return time.perf_counter()


class Poller(Generic[Key]):
    """Waits for events of sockets, each with a key. edge: whether each event is reported once."""

    def __init__(self) -> None:
        self.edge = hasattr(select, "epoll")
        self._keys: dict[int, Key] = {}
        if hasattr(select, "epoll"):
            self._epoll = select.epoll()
        else:
            self._selector = selectors.DefaultSelector()

    def close(self) -> None:
        """Close it."""
        (self._epoll if self.edge else self._selector).close()

    def add(self, sock: socket.socket, key: Key) -> None:
        """Report when the socket can be read or has ended. Raises OSError."""
        if self.edge:
            self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        else:
            self._selector.register(sock, selectors.EVENT_READ)
        self._keys[sock.fileno()] = key

    def watch_writing(self, sock: socket.socket, *, wanted: bool) -> None:
        """Report also, or no longer, when the socket can be written."""
        if self.edge:
            also = select.EPOLLOUT if wanted else 0
            self._epoll.modify(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET | also)
        else:
            also = selectors.EVENT_WRITE if wanted else 0
            self._selector.modify(sock, selectors.EVENT_READ | also)

    def remove(self, sock: socket.socket) -> None:
        """Report no more of a socket that is about to be closed."""
        if self._keys.pop(sock.fileno(), None) is not None:
            (self._epoll if self.edge else self._selector).unregister(sock)

    def keys(self) -> list[Key]:
        """Return all keys."""
        return list(self._keys.values())

    def ask(self, timeout: float = 0) -> list[tuple[Key, int]]:
        """Return new events: keys with the sum of READ, WRITE and END.

        timeout: in seconds; it is rounded up to milliseconds.
        """
        if not self.edge:
            return [(self._keys[entry.fd], mask) for entry, mask in self._selector.select(timeout)]
        keys, meaning = self._keys, _MEANING
        return [(keys[fd], meaning[mask]) for fd, mask in self._epoll.poll(timeout, _MOST_EVENTS)]

    def wait(self, seconds: float) -> list[tuple[Key, int]]:
        """Wait for events, at most so long; and not a millisecond longer, as epoll alone would."""
        if seconds > _COARSE:
            return self.ask(int(seconds * 1000 - 1) / 1000)
        if seconds > _SLACK and self.edge and self._epoll.fileno() < _SELECT_MOST:
            ready, _, _ = select.select([self._epoll.fileno()], [], [], seconds - _SLACK)
            return self.ask() if ready else []
        return []
