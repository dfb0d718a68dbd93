"""Fuzzing connections: Hypothesis generates what happens to a server, and a model knows the results.

The model has every deadline, on sockets too: the clocks of Trio and of the lane stand still until the machine
moves them, so a pause of a minute takes no time. After each step the answers of all clients and all counters
must be those of the model. After each step a good client sends a request and must get the answer.
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
from tests.fuzz.model import ZONES, Model
from tests.fuzz.oracle import Law
from tests.fuzz.peer import Peer
from tests.helpers.servers import Running, start_lane, start_memory, start_tcp, start_tls

TRANSPORTS: dict[str, Callable[..., Awaitable[Running]]] = {
    "memory": start_memory,
    "tcp": start_tcp,
    "lane": start_lane,
    "tls": start_tls,
}

CLIENTS_AT_ONCE = 3
# In seconds. The lane checks its deadlines only at intervals; these pauses are longer.
PAUSES = (0.5, 4.75, 9.5, 10.0, 50.0, 59.5)
# After the drain window, shortly before the end of the grace time, and beyond it.
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
    """One server and its clients. Each transport has a subclass.

    examples, steps: their number so far. totals: the counts of all servers.
    """

    start: ClassVar[Callable[..., Awaitable[Running]]]
    examples: ClassVar[int] = 0
    steps: ClassVar[int] = 0
    totals: ClassVar[Counter[str]]
    model: Model

    @initialize(target=clients)
    def start_server(self) -> MultipleResults[Peer]:
        """A server starts, and the good client and others connect."""
        type(self).examples += 1
        self.model = Model(type(self).start)
        return multiple(*(self.model.connect() for _ in range(CLIENTS_AT_ONCE)))

    @precondition(lambda self: not self.model.draining)
    @precondition(lambda self: sum(not peer.closed for peer in self.model.peers) <= CLIENTS_AT_ONCE)
    @rule(target=clients)
    def connect(self) -> Peer:
        """A client connects."""
        return self.model.connect()

    @rule(client=clients, pieces=SENDS, settle=st.booleans())
    def send(self, client: Peer, pieces: list[bytes], *, settle: bool) -> None:
        """A client sends pieces; with `settle` the server reads each by itself."""
        if client.may_send:
            # A draining server does not have to wait for a second piece.
            for piece in [b"".join(pieces)] if self.model.draining else pieces:
                self.model.send(client, piece)
                if settle:
                    self.model.settle()

    @rule(client=clients, piece=PIECES)
    def send_one(self, client: Peer, piece: bytes) -> None:
        """A client sends one piece, so that other steps come between two pieces."""
        if client.may_send:
            self.model.send(client, piece)

    @rule(client=clients, length=st.integers(1, 5))
    def send_part(self, client: Peer, length: int) -> None:
        """A client begins a line, so that other steps come before its end."""
        if client.may_send:
            self.model.send(client, b"TIME\r"[:length])

    @rule(client=clients)
    def half_close(self, client: Peer) -> None:
        """A client ends its sending side."""
        if client.may_send:
            self.model.half_close(client)

    @rule(client=consumes(clients))
    def close(self, client: Peer) -> None:
        """A client closes, perhaps with unread answers."""
        self.model.leave(client)

    @rule(client=consumes(clients))
    def reset(self, client: Peer) -> None:
        """A client resets its connection; in memory it closes."""
        self.model.leave(client, reset=True)

    @rule(client=clients)
    def stop_reading(self, client: Peer) -> None:
        """A client stops reading."""
        self.model.trio.call(client.pause)

    @rule(client=clients)
    def read_on(self, client: Peer) -> None:
        """A client reads again."""
        if client.flood:
            self.model.take_flood(client)
        else:
            self.model.trio.call(client.resume)

    @precondition(lambda self: not self.model.draining and not self.model.flooded)
    @rule(client=clients)
    def flood(self, client: Peer) -> None:
        """A client sends without reading until the server cannot send any more."""
        # Only once: after a flood was read, the kernel buffers much more.
        fresh = client.may_send and client.ended is None and not client.oracle.line and not client.times
        if fresh and client.on_socket:
            self.model.start_flood(client)

    @rule(seconds=st.sampled_from(PAUSES), draining=st.sampled_from(DRAINING_PAUSES))
    def wait(self, seconds: float, draining: float) -> None:
        """Time passes."""
        self.model.wait(draining if self.model.draining else seconds)

    @rule(seconds=st.sampled_from(CLOCK_STEPS))
    def set_wall_clock(self, seconds: float) -> None:
        """The wall clock steps; deadlines do not follow it."""
        self.model.set_wall_clock(seconds)

    @rule(law=LAWS, zone=st.sampled_from(sorted(ZONES)))
    def sighup(self, law: Law, zone: str) -> None:
        """The operator changes the settings."""
        self.model.reload(law, zone)

    @precondition(lambda self: not self.model.draining and not self.model.flooded)
    @rule(now=st.sampled_from([False] * 3 + [True]))
    def drain(self, *, now: bool) -> None:
        """The operator stops the server; rarely, because little can happen after that."""
        if now:
            self.model.drain()

    def check_invariants(self, *arguments: Any, **named: Any) -> None:
        """After each step the good client gets an answer, and the model is checked."""
        # An @invariant would make the printed example of a failure harder to read.
        super().check_invariants(*arguments, **named)
        if not hasattr(self, "model"):
            return
        type(self).steps += 1
        if self.model.good.ended is None:
            self.model.send(self.model.good, b"TIME\r\n")
        self.model.settle()

    def teardown(self) -> None:
        """All clients leave, the server stops, and nothing is left."""
        if hasattr(self, "model"):
            self.model.close()
            type(self).totals.update(counted(self.model.server.counters))


def over(transport: str) -> type[Connections]:
    """Make the machine of one transport, with its own counts."""
    start = staticmethod(TRANSPORTS[transport])
    return type(f"{transport.title()}Connections", (Connections,), {"start": start, "totals": Counter()})
