"""Compares what a load sent with what its servers counted, to the last request.

Behind a load balancer there are several servers, whose counters are added up. They are read before the load
and after it, and during it when a restart is suspected. When a process ends, its counts since the last
reading are lost; the result says so, and how many requests they can be at most.
"""

from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Self

import trio

from triojam.load.measure.tally import Tally
from triojam.load.readings import OPEN, Access, Counts, MetricsError, Page, Reading

# How long the server may take to count the last answer.
SETTLE_SECONDS = 2.0
SETTLE_INTERVAL = 0.02
# A server that drains counts until it ends, so it is read again and again after the first sign of that.
SUSPECT_SECONDS = 5.0
SUSPECT_INTERVAL = 0.1
# A killed server gives no sign before it ends. All counts of a long load would be lost without a reading.
READ_INTERVAL = 10.0

# The causes of failed requests that have an answer: a time, but not the right one.
_WRONG_TIMES = ("wrong time", "a time for a bad line")
# The server closes a connection with one of these before it reads a request.
_REFUSED = ("ERROR busy", "ERROR per_source")


class _Server:
    """What one server has counted since the first reading, over all its processes."""

    def __init__(self, page: Page, first: Reading) -> None:
        self._page = page
        self._first = first
        self._latest = {first.process: first.counts}
        self._replaced = Counts()
        self.restarts = 0  # how many processes have replaced others

    async def read(self) -> None:
        """Read the counters again. Raises MetricsError."""
        reading = await self._page.read()
        before = self._latest.get(reading.process)
        if before is None:
            self.restarts += 1
        elif reading.counts.requests < before.requests:  # not every system knows when a process started
            self.restarts += 1
            self._replaced += before
        self._latest[reading.process] = reading.counts

    @property
    def counted(self) -> Counts:
        """The counts since the first reading, as far as they were read."""
        return sum(self._latest.values(), self._replaced) - self._first.counts


class Reconciliation:
    """What all servers of a load have counted since the first reading."""

    def __init__(self, servers: Sequence[_Server]) -> None:
        self._servers = servers
        self._suspected_until = -inf
        self._suspicion = trio.Event()

    @classmethod
    async def begin(cls, urls: Sequence[str], access: Access = OPEN) -> Self:
        """Read the counters before a load. Raises MetricsError."""
        pages = [Page(url, access) for url in urls]
        return cls([_Server(page, await page.read()) for page in pages])

    def suspect(self) -> None:
        """A server may be about to restart: let `keep_reading` read at once, and often for a while."""
        self._suspected_until = trio.current_time() + SUSPECT_SECONDS
        self._suspicion.set()
        self._suspicion = trio.Event()

    async def keep_reading(self) -> None:
        """Read repeatedly until cancelled; a server that does not answer does not delay the others."""
        async with trio.open_nursery() as nursery:
            for server in self._servers:
                nursery.start_soon(self._keep_reading, server)

    async def _keep_reading(self, server: _Server) -> None:
        while True:
            if trio.current_time() < self._suspected_until:
                await trio.sleep(SUSPECT_INTERVAL)
            else:
                with trio.move_on_after(READ_INTERVAL):
                    await self._suspicion.wait()
            with suppress(MetricsError):  # during a restart
                await server.read()

    async def read_last(self) -> None:
        """Read until the counters have settled, or for SETTLE_SECONDS. Raises MetricsError."""
        deadline = trio.current_time() + SETTLE_SECONDS
        before: Counts | None = None
        while True:
            try:
                for server in self._servers:
                    await server.read()
            except MetricsError:
                if trio.current_time() >= deadline:
                    raise
            else:
                settled = self.counted == before and not self.counted.unaccounted
                if settled or trio.current_time() >= deadline:
                    return
                before = self.counted
            await trio.sleep(SETTLE_INTERVAL)

    @property
    def servers(self) -> int:
        """How many servers are read."""
        return len(self._servers)

    @property
    def name(self) -> str:
        """What a sentence calls the servers."""
        return "server" if self.servers == 1 else "servers"

    @property
    def restarts(self) -> int:
        """How many processes have replaced others."""
        return sum(server.restarts for server in self._servers)

    @property
    def counted(self) -> Counts:
        """The sums of all servers."""
        return sum((server.counted for server in self._servers), Counts())

    def lost(self, tally: Tally) -> int:
        """Return how many requests are in no reading of the counters after a restart, at most."""
        return max(tally.sent - self.counted.requests, 0) if self.restarts else 0

    def missing(self, tally: Tally) -> dict[str, int]:
        """Return where the failed requests are in the counters.

        The last number is of requests that have not failed: a server may close a connection in place of an
        ERROR line (see `Tally.closed_instead`), but also for another reason, without counting the bad line.
        The numbers hold if there are no faults and no losses.
        """
        counted, failed = self.counted, tally.failed
        only_closed = min(tally.closed_instead, max(tally.rejected - counted.rejected, 0))
        uncounted = tally.sent - counted.requests - only_closed
        refused = min(uncounted, sum(failed[cause] for cause in failed if cause.startswith(_REFUSED)))
        answered = counted.responses - tally.answered
        wrong = min(answered, sum(failed[cause] for cause in _WRONG_TIMES))
        rejected = counted.rejected - tally.rejected + only_closed
        # A pipeline fails as a whole with the ERROR line that ends its connection.
        errors = {cause for cause in failed if cause.startswith("ERROR ") and not cause.startswith(_REFUSED)}
        told = min(rejected, sum(failed[cause] for cause in errors))
        return {
            "refused": refused,
            "not_counted": uncounted - refused,
            "answered_wrong": wrong,
            "answer_not_received": answered - wrong,
            "rejected_with_error": told,
            "rejected_without_error": rejected - told,
            "send_errors": counted.send_errors,
            "only_closed": only_closed,
        }

    def faults(self, tally: Tally) -> list[str]:
        """Return what does not balance, in sentences. A restart explains that counts are missing."""
        counted = self.counted
        name, doubt = self.name, "the server counts wrong" if self.servers == 1 else "a server counts wrong"
        faults = []
        if (more := counted.requests - tally.sent) > 0:
            faults.append(
                f"The {name} counted {numbered(more, 'request')} more than this client sent:"
                f" other clients sent requests meanwhile, or {doubt}."
            )
        answers = tally.answered + sum(tally.failed[cause] for cause in _WRONG_TIMES) - counted.responses
        rejections = tally.rejected - tally.closed_instead - counted.rejected
        if self.restarts:
            received = max(answers, 0) + max(rejections, 0)
            explained = self.lost(tally) + max(counted.unaccounted, 0)
            if received > explained:
                only = f"only {explained:,}" if explained else "none"
                faults.append(
                    f"This client received {numbered(received, 'reply', 'replies')} more than the {name}"
                    f" counted, and a restart explains {only} of them."
                )
        else:
            faults += [
                f"This client received {numbered(more, what)} more than the {name} counted:"
                f" --metrics does not name every server that replied, or {doubt}."
                for more, what in ((answers, "answer"), (rejections, "rejection"))
                if more > 0
            ]
            if counted.unaccounted > 0:
                faults.append(
                    f"The {name} counted {numbered(counted.unaccounted, 'request')} without an outcome:"
                    " neither answered, nor rejected, nor a send error."
                )
        if counted.unaccounted < 0:
            faults.append(
                f"The {name} counted {numbered(-counted.unaccounted, 'outcome')} more than requests:"
                f" requests of other clients were in flight at the start, or {doubt}."
            )
        return faults


def numbered(number: int, what: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"
