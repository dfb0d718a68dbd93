"""Connections under fuzz: Hypothesis makes up what happens to a server, and a model says what is due.

Every deadline is modelled, on sockets too: Trio's clock and the lane's stand still until the machine moves
them, so a pause of a minute costs nothing and happens at no other moment than it says. After each step the
answers of every client and all counters must be those of the model. One client more, which only asks for
the time, is asked after each step and must be answered.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
)

from tests.fuzz.accounts import counted
from tests.fuzz.oracle import Law
from tests.fuzz.peer import Peer
from tests.fuzz.world import ZONES, World
from tests.helpers.servers import Running, start_lane, start_memory, start_tcp, start_tls

# Every transport that the machine runs over.
TRANSPORTS: dict[str, Callable[..., Awaitable[Running]]] = {
    "memory": start_memory,
    "tcp": start_tcp,
    "lane": start_lane,
    "tls": start_tls,
}

CLIENTS_AT_ONCE = 3
# In seconds; none so short that the lane, which looks at its deadlines now and then, might miss one.
PAUSES = (0.5, 4.75, 9.5, 10.0, 50.0, 59.5)
# Up to the end of the grace time: over the drain window, shortly before the end, and beyond.
DRAINING_PAUSES = (0.0625, 0.5, 3.0, 7.8125, 10.0)
CLOCK_STEPS = (0.75, 60.0, 3600.0, -3600.0, 86_399.0)

PIECES = st.sampled_from(
    [b"TIME\r\n", b"TIME\r\n" * 7, b"TIME please\r\n", b"TI", b"ME\r", b"\n", b"\r\n", b"TIME\n",
     b"HELLO\r\n", b"QUIT\r\n", b"QUIT", b"x" * 30, b"TIME" + b"x" * 600, b"x\r\n" * 4, b"\x00\xff\x1b",
     b"\n" * 9 + b"TIME\r\n", b"x\r\n" * 70 + b"TI", b"TIME\r\n" * 800]
)  # fmt: skip
SENDS = st.lists(PIECES | st.binary(min_size=1, max_size=12), min_size=1, max_size=4)
LAWS = st.builds(
    Law, limit=st.sampled_from([512, 0, 6, 20]), budget=st.sampled_from([10, 0, 1, 3]), reply=st.booleans()
)

clients: Bundle[Peer] = Bundle("clients")


class Connections(RuleBasedStateMachine):
    """One server and its clients. A subclass has the transport.

    examples, steps: how many there have been. totals: what the servers have counted.
    """

    start: ClassVar[Callable[..., Awaitable[Running]]]
    examples: ClassVar[int] = 0
    steps: ClassVar[int] = 0
    totals: ClassVar[Counter[str]]
    world: World

    @initialize(target=clients)
    def start_server(self) -> MultipleResults[Peer]:
        """A server starts, the good client connects, and so do others."""
        type(self).examples += 1
        self.world = World(type(self).start)
        return multiple(*(self.world.connect() for _ in range(CLIENTS_AT_ONCE)))

    @precondition(lambda self: not self.world.draining)
    @precondition(lambda self: sum(not peer.closed for peer in self.world.peers) <= CLIENTS_AT_ONCE)
    @rule(target=clients)
    def connect(self) -> Peer:
        """A client connects."""
        return self.world.connect()

    @rule(client=clients, pieces=SENDS, settle=st.booleans())
    def send(self, client: Peer, pieces: list[bytes], *, settle: bool) -> None:
        """A client sends, in one piece or more, each read by itself if they `settle`."""
        if client.may_send:
            # A server that stops need not wait for a second piece.
            for piece in [b"".join(pieces)] if self.world.draining else pieces:
                self.world.send(client, piece)
                if settle:
                    self.world.settle()

    @rule(client=clients, piece=PIECES)
    def send_one(self, client: Peer, piece: bytes) -> None:
        """A client sends one thing, so that more often something happens between two."""
        if client.may_send:
            self.world.send(client, piece)

    @rule(client=clients, length=st.integers(1, 5))
    def send_part(self, client: Peer, length: int) -> None:
        """A client begins a line, so that more often something happens before its end."""
        if client.may_send:
            self.world.send(client, b"TIME\r"[:length])

    @rule(client=clients)
    def half_close(self, client: Peer) -> None:
        """A client ends its sending side."""
        if client.may_send:
            self.world.half_close(client)

    @rule(client=consumes(clients))
    def close(self, client: Peer) -> None:
        """A client closes, whatever it has not read."""
        self.world.leave(client)

    @rule(client=consumes(clients))
    def reset(self, client: Peer) -> None:
        """A client resets its connection, where there is such a thing."""
        self.world.leave(client, reset=True)

    @rule(client=clients)
    def stop_reading(self, client: Peer) -> None:
        """A client reads no more."""
        self.world.portal.call(client.pause)

    @rule(client=clients)
    def read_on(self, client: Peer) -> None:
        """A client reads what it has not read."""
        if client.flood:
            self.world.take_flood(client)
        else:
            self.world.portal.call(client.resume)

    @precondition(lambda self: not self.world.draining and not self.world.flooded)
    @rule(client=clients)
    def flood(self, client: Peer) -> None:
        """A client sends, without reading, until a send of the server is blocked."""
        # Once only: for a client that has read so much, the kernel keeps much more.
        fresh = client.may_send and client.ended is None and not client.oracle.line and not client.times
        if fresh and client.on_socket:
            self.world.start_flood(client)

    @rule(seconds=st.sampled_from(PAUSES), draining=st.sampled_from(DRAINING_PAUSES))
    def wait(self, seconds: float, draining: float) -> None:
        """Nothing happens for some time."""
        self.world.wait(draining if self.world.draining else seconds)

    @rule(seconds=st.sampled_from(CLOCK_STEPS))
    def set_wall_clock(self, seconds: float) -> None:
        """The wall clock is stepped; deadlines do not follow it."""
        self.world.set_wall_clock(seconds)

    @rule(law=LAWS, zone=st.sampled_from(sorted(ZONES)))
    def sighup(self, law: Law, zone: str) -> None:
        """The operator changes the settings."""
        self.world.reload(law, zone)

    @precondition(lambda self: not self.world.draining and not self.world.flooded)
    @rule(now=st.sampled_from([False] * 3 + [True]))
    def drain(self, *, now: bool) -> None:
        """The operator stops the server; not often, for little can happen after that."""
        if now:
            self.world.drain()

    def check_invariants(self, *arguments: Any, **named: Any) -> None:
        """After each step the good client is answered, and all are accounted for."""
        # No @invariant: an example that failed is easier to read without one between its steps.
        super().check_invariants(*arguments, **named)
        if not hasattr(self, "world"):
            return
        type(self).steps += 1
        if self.world.good.ended is None:
            self.world.send(self.world.good, b"TIME\r\n")
        self.world.settle()

    def teardown(self) -> None:
        """Everyone leaves, the server stops, and nothing is left."""
        if hasattr(self, "world"):
            self.world.close()
            type(self).totals.update(counted(self.world.server.counters))


def over(transport: str) -> type[Connections]:
    """Make the machine of one transport, which counts for itself."""
    start = staticmethod(TRANSPORTS[transport])
    return type(f"{transport.title()}Connections", (Connections,), {"start": start, "totals": Counter()})
