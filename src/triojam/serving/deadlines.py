"""How long clients may take, and the one task that keeps the time of all of them.

A client waits for one thing at a time, and everything of a kind has the same time for it. So the clients
that wait for the same thing stand in a queue, in the order in which they began, and only its head can be
overdue. That costs a request the move to the end of a queue, where a timer of its own would cost more than
the request. Overdue clients are released a few at a time: when thousands are late at once, after the
process stood still, say, those that are in time do not wait for them all.
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
# It has longer if it came, or had its last answer, less than this ago: its next request is only a round trip
# away, and closing before it arrives would leave it without an answer.
ON_ITS_WAY = 0.5
# How long before the end of the grace time a client that is still in the middle of a line is told.
FAREWELL = 0.25
# After the last answer the server waits this long for the client to close first (see `streams.finish`).
LINGER_SECONDS = 1.0

# How many clients are released before others have their turn.
RELEASED_AT_ONCE = 32
# The queues are looked at no less often than this, in seconds: settings change, and a server begins to stop.
LONGEST_PAUSE = 0.25
# A part of the shortest time, for a client that begins to wait for something else after the last look.
PAUSE_PARTS = 50
SHORTEST_PAUSE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a client may take, in seconds; `math.inf` = for ever.

    idle: without the first byte of a request.
    line: from the first byte of a line to its LF; as long for a handshake.
    send: to take the answers to one read.
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
    REQUEST = 1  # its first byte
    LINE = 2  # the rest of it
    SEND = 3  # for answers to be taken
    CLOSE = 4  # by the client, after the last answer


@dataclass(slots=True)
class Drain:
    """Since when a server stops, and when it must have stopped; times are those of its deadlines."""

    began: float = math.inf
    ends: float = math.inf

    def request_deadline(self, since: float) -> float:
        """Return until when a client that was last served at `since` may begin a request."""
        return max(self.began + DRAIN_WINDOW, since + ON_ITS_WAY)

    @property
    def line_deadline(self) -> float:
        """Until when a line that was begun may end."""
        return self.ends - FAREWELL


class Waiting(Protocol):
    """A client, as far as time is concerned.

    since: when the wait for it began. queue: of those that are waited for as it is.
    """

    since: float
    queue: dict[Any, None] | None

    def release(self) -> None:
        """End the wait: the time for it is over."""


Client = TypeVar("Client", bound=Waiting)


class Deadlines(Generic[Client]):
    """The clients that are waited for, by what it is that they are to do.

    timeouts: returns those in force; new ones are for the waits that go on, too.
    """

    def __init__(self, timeouts: Callable[[], Timeouts]) -> None:
        self.drain = Drain()
        self._timeouts = timeouts
        self._queues: dict[Wait, dict[Client, None]] = {wait: {} for wait in Wait}
        self._nap = trio.CancelScope()

    def expect(self, client: Client, wait: Wait, since: float) -> None:
        """Wait for a client since then, and for nothing else from now on.

        `since` is now, or the client keeps its place: only so is the head of a queue the first to be overdue.
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
        """Wait no longer."""
        if client.queue is not None:
            client.queue.pop(client, None)

    def of(self, wait: Wait, since: float) -> float:
        """Return when a wait that began at `since` is over, on Trio's clock."""
        timeouts = self._timeouts()
        if wait is Wait.REQUEST:
            return min(since + timeouts.idle, self.drain.request_deadline(since))
        if wait is Wait.SEND:
            return since + timeouts.send
        if wait is Wait.CLOSE:
            return since + LINGER_SECONDS
        return min(since + timeouts.line, self.drain.line_deadline)

    def wake(self) -> None:
        """Look for overdue clients at once: the deadlines have changed."""
        self._nap.cancel()

    async def keep(self) -> None:
        """Release the clients that are overdue, as long as this is not cancelled."""
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
