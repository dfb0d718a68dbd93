"""The timeouts of clients, and the one task that keeps the deadlines of all clients.

A client waits for one thing at a time, and all waits of one kind have the same timeout. So there is a queue
for each kind of wait, in the order in which the waits began: only the head of a queue can be overdue. A
request costs one move to the end of a queue; a timer of its own would cost more than the request. Overdue
clients are released a few at a time: if thousands are late at once, punctual clients do not wait for all of
them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import trio

# A stopping server gives an idle client this long, in seconds, for a request that is on its way.
DRAIN_WINDOW = 0.05
# A client that connected, or had its last answer, less than this ago has until then: its next request may be
# one round trip away.
ON_ITS_WAY = 0.5
# A client with an unfinished line gets its error line this long before the end of the grace time.
FAREWELL = 0.25
# After the last answer the server waits this long for the client to close first (see `streams.finish`).
LINGER_SECONDS = 1.0

# How many clients are released before other tasks run.
RELEASED_AT_ONCE = 32
# The longest pause between two looks at the queues, in seconds.
LONGEST_PAUSE = 0.25
# A pause is this part of the shortest timeout: a client may begin another wait after the last look.
PAUSE_PARTS = 50
SHORTEST_PAUSE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a client may take, in seconds; `math.inf` = for ever.

    idle: until the first byte of a request.
    line: from the first byte of a line to its LF; a handshake and a PROXY header have the same time.
    send: until the client has taken the answers to one read.
    """

    idle: float = 60.0
    line: float = 10.0
    send: float = 10.0

    @property
    def pause(self) -> float:
        """The time between two looks for overdue clients, in seconds."""
        shortest = min(self.idle, self.line, self.send) / PAUSE_PARTS
        return min(max(shortest, SHORTEST_PAUSE), LONGEST_PAUSE)


class Wait(IntEnum):
    """What the server waits for, on one connection."""

    HANDSHAKE = 0
    REQUEST = 1  # the first byte of a request
    LINE = 2  # the rest of a line
    SEND = 3  # the client takes its answers
    CLOSE = 4  # the client closes after the last answer
    HEADER = 5  # the rest of the PROXY header


@dataclass(slots=True)
class Drain:
    """When a server began to stop, and when it must have stopped; both on Trio's clock."""

    began: float = math.inf
    ends: float = math.inf

    def request_deadline(self, since: float) -> float:
        """Return when a client that was last served at `since` must have begun a request."""
        return max(self.began + DRAIN_WINDOW, since + ON_ITS_WAY)

    @property
    def line_deadline(self) -> float:
        """When an unfinished line must have ended."""
        return self.ends - FAREWELL


class Waiting(Protocol):
    """A client that the server waits for.

    since: when the wait began. queue: the clients that wait for the same thing.
    """

    since: float
    queue: dict[Any, None] | None

    def release(self) -> None:
        """End the wait, because its deadline has passed."""


Client = TypeVar("Client", bound=Waiting)


class Deadlines(Generic[Client]):
    """The waits of all clients.

    timeouts: returns the present timeouts; new ones apply to the present waits, too.
    """

    def __init__(self, timeouts: Callable[[], Timeouts]) -> None:
        self.drain = Drain()
        self._timeouts = timeouts
        self._queues: dict[Wait, dict[Client, None]] = {wait: {} for wait in Wait}
        self._nap = trio.CancelScope()

    def expect(self, client: Client, wait: Wait, since: float) -> None:
        """Begin a wait for a client; it replaces the present one.

        `since` must be now, or unchanged: the head of a queue must be the first to be overdue.
        """
        queue = self._queues[wait]
        if client.queue is not None:
            if client.queue is queue and client.since == since and client in queue:
                return
            client.queue.pop(client, None)
        client.since = since
        client.queue = queue
        queue[client] = None

    def forget(self, client: Client) -> None:
        """End the wait for a client."""
        if client.queue is not None:
            client.queue.pop(client, None)

    def of(self, wait: Wait, since: float) -> float:
        """Return the deadline of a wait that began at `since`, on Trio's clock."""
        timeouts = self._timeouts()
        if wait is Wait.REQUEST:
            return min(since + timeouts.idle, self.drain.request_deadline(since))
        if wait is Wait.SEND:
            return since + timeouts.send
        if wait is Wait.CLOSE:
            return since + LINGER_SECONDS
        if wait is Wait.HEADER:
            return min(since + timeouts.line, self.drain.request_deadline(since))
        return min(since + timeouts.line, self.drain.line_deadline)

    def wake(self) -> None:
        """Look for overdue clients at once, because the deadlines have changed."""
        self._nap.cancel()

    async def keep(self) -> None:
        """Release overdue clients, until cancelled."""
        while True:
            now = trio.current_time()
            overdue = list(islice(self._overdue(now), RELEASED_AT_ONCE))
            for client in overdue:
                self.forget(client)
                client.release()
            if overdue:
                await trio.lowlevel.checkpoint()
                continue
            with trio.CancelScope(deadline=min(self._next(), now + self._timeouts().pause)) as self._nap:
                await trio.sleep_forever()

    def _overdue(self, now: float) -> Iterator[Client]:
        for wait, queue in self._queues.items():
            for client in queue:
                if self.of(wait, client.since) > now:
                    break
                yield client

    def _next(self) -> float:
        heads = ((wait, next(iter(queue))) for wait, queue in self._queues.items() if queue)
        return min((self.of(wait, head.since) for wait, head in heads), default=math.inf)
