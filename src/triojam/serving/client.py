"""One client while it is served: its connection, its state, and the counting of its requests.

All requests are counted here, with one exception: the fast lane counts its plain requests batch by batch.
Each time that is due is counted exactly once: as delivered, or as lost.
"""

import logging
import math
from collections.abc import Callable

import trio

from triojam.core.addresses import format_address
from triojam.core.admission import ANYONE, Source
from triojam.core.protocol import PLAIN, Connection, Outcome, delivered, printable
from triojam.core.reasons import Disconnect, Refusal, SendError
from triojam.serving.newcomers import Relayed
from triojam.serving.service import Service
from triojam.serving.streams import ClientStream


class Client(trio.abc.AsyncResource):
    """An admitted connection.

    source: the source that counts this connection; replaced when limits by source are switched on.
    relayed: for a connection from a proxy.
    received: bytes that were read and not decided on.
    since: when the present wait began. first_byte: when its unfinished line began, or None.
        arrived: when the last bytes came. All in seconds, on Trio's clock.
    end: why the connection must be closed after the answers are sent, or None.
    late: whether the last wait ended at its deadline.
    scope: around the waits of its task. queue: the clients that wait for the same thing.
    """

    __slots__ = (
        "_answers", "_counters", "_due", "_service", "arrived", "end", "first_byte", "late", "protocol",
        "queue", "received", "relayed", "scope", "since", "source", "stream",
    )  # fmt: skip

    def __init__(
        self, service: Service, stream: ClientStream, source: Source = ANYONE, since: float = 0.0
    ) -> None:
        self.stream = stream
        self.source = source
        self.relayed: Relayed | None = None
        self.protocol = Connection(service.rules)
        self.received = b""
        self.since = since
        self.arrived = -math.inf
        self.first_byte: float | None = None
        self.end: Disconnect | None = None
        self.late = False
        self.scope = trio.CancelScope()
        self.queue: dict[Client, None] | None = None
        self._service = service
        self._counters = service.counters_for(source)
        self._answers = b""  # being sent
        self._due = 0  # how many times are in them

    @property
    def peer(self) -> str:
        """The client's address, for the log; the proxy's, if no client is known."""
        address = (self.relayed and self.relayed.address) or self.stream.peer()
        return "unknown" if address is None else format_address(address)

    @property
    def host(self) -> str | None:
        """The IP address that limits by source apply to, or None."""
        if self.relayed is not None:
            return self.relayed.host
        address = self.stream.peer()
        return None if address is None else address[0]

    async def aclose(self) -> None:
        """Close the connection."""
        await self.stream.aclose()

    def release(self) -> None:
        """End the wait of the client's task, because its deadline has passed."""
        self.late = True
        self.scope.cancel()

    @property
    def silent(self) -> bool:
        """Whether the client has never sent anything, and so has no answers."""
        return self.arrived == -math.inf

    def answer(self, data: bytes, now: float) -> bool:
        """Decide on `data`, up to the limit of one step, and begin to send the answers.

        Returns whether the kernel has taken the answers. If not, `sent` or `lost` must follow. Raises
        trio.BrokenResourceError, after which `lost` must follow.
        """
        service = self._service
        self.arrived = now
        self.received = b""
        times = PLAIN.get(data)
        if times is not None and self.protocol.fresh and self.source is ANYONE:
            self._answers = service.jam() * times
            self._counters.requests += times
            self._due = times
        else:
            outcome = self._decide(data, now)
            self.end = outcome.end
            self._enter(outcome)
        if self._answers and not self.stream.send_now(self._answers):
            return False
        self.sent()
        return True

    def give_up(self, decide: Callable[[Connection], Outcome]) -> bool:
        """Do as `answer`, for a decision of the protocol that needs no data, such as a timeout."""
        self.protocol.rules = self._service.rules
        outcome = decide(self.protocol)
        self.end = outcome.end
        self._enter(outcome)
        return not self._answers or self.stream.send_now(self._answers)

    @property
    def owed(self) -> bool:
        """Whether answers are being sent."""
        return bool(self._answers)

    def owe(self, answers: bytes, times: int, arrived: float) -> None:
        """Take over answers that the fast lane has begun to send."""
        self._counters.requests += times
        self._answers, self._due, self.arrived = answers, times, arrived

    def sent(self) -> None:
        """Count answers that the kernel has taken."""
        if self._due:
            self._deliver(self._due)
        self._answers, self._due = b"", 0

    def lost(self, why: SendError) -> None:
        """Count the times that are due and will not be delivered."""
        if self._due:
            taken = delivered(self._answers, self.stream.taken)
            self._counters.send_errors[why] += self._due - taken
            if taken:
                self._deliver(taken)
        self._answers, self._due = b"", 0

    def abandon(self, why: SendError, decide: Callable[[Connection], Outcome]) -> None:
        """Count what is due, and what was read and not decided, of a connection that ends.

        decide: the protocol's decision about an unfinished line.
        """
        self.lost(why)
        if self.received:
            self._enter(self._decide(self.received, self.arrived))
            self._counters.send_errors[why] += self._due  # no byte of them was sent
        self._enter(decide(self.protocol))

    def close(self, reason: Disconnect | Refusal) -> None:
        """Close the connection, and count its end."""
        service = self._service
        if isinstance(reason, Refusal):
            self._counters.turned_away(reason)
        else:
            self._counters.closed(reason)
        service.admission.leave(self.source)
        if service.log.is_enabled_for(logging.DEBUG) and self.source is not service.admission.itself:
            service.log.debug("connection ended", peer=self.peer, reason=reason)
        self.stream.close(reset=reason is Disconnect.SEND_TIMEOUT)

    def _decide(self, data: bytes, now: float) -> Outcome:
        service = self._service
        self.protocol.rules = service.rules
        if not data and not self.protocol.more:
            return self.protocol.end_of_stream()
        permits = None
        if service.admission.limits_rate and self.source not in (ANYONE, service.admission.itself):
            permits = service.admission.permits(self.source, now)
        outcome = self.protocol.receive(data, service.jam, permits)
        if permits is not None:
            service.admission.spend(self.source, outcome.permits_used, now)
        if self.first_byte is not None and outcome.requests:
            if outcome.end is not Disconnect.TOO_LONG:
                self._counters.request_receive.observe(now - self.first_byte)
            self.first_byte = None
        if not self.protocol.midline:
            self.first_byte = None
        elif self.first_byte is None:
            self.first_byte = now
        return outcome

    def _enter(self, outcome: Outcome) -> None:
        """Count the decisions, and keep the answers for sending."""
        service, rejected = self._service, outcome.rejected
        self._counters.requests += outcome.requests
        self._answers = b"".join(outcome.answers)
        self._due = outcome.requests - len(rejected)
        if rejected:
            for reason, _ in rejected:
                self._counters.rejected[reason] += 1
            if service.log.is_enabled_for(logging.DEBUG):
                for reason, line in rejected:
                    service.log.debug("request rejected", peer=self.peer, reason=reason, line=printable(line))

    def _deliver(self, times: int) -> None:
        counters = self._counters
        counters.responses += times
        counters.request_duration.observe(trio.current_time() - self.arrived, times)
