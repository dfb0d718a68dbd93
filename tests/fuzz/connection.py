"""A server under fuzz: Hypothesis makes up what clients, operator and clocks do, and a model says what is due.

Every deadline is modelled, on sockets too: Trio's clock and the lane's stand still until the machine moves
them, so a pause of a minute costs nothing and happens at no other moment than it says. After each step the
answers of every client and all counters must be those of the model. One client more, which only asks for
the time, is asked after each step and must be answered.
"""

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import trio
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, precondition, rule

from tests.fuzz.oracle import JAM, Law, Oracle
from tests.fuzz.peer import Peer
from tests.fuzz.portal import Portal, settled
from tests.support import NOW, Running, settings_for_test, start_lane, start_memory, start_tcp
from triojam import lane
from triojam.handler import LINGER_SECONDS
from triojam.protocol import DRAIN_WINDOW, Rules
from triojam.reasons import Rejection

# Every transport that the machine runs over.
TRANSPORTS: dict[str, Callable[..., Awaitable[Running]]] = {
    "memory": start_memory,
    "tcp": start_tcp,
    "lane": start_lane,
}

IDLE, LINE, SEND = 60.0, 10.0, 10.0
# None of these is so short that the lane, which looks at its deadlines every fiftieth of them, might miss one.
PAUSES = (0.5, 3.0, 7.5, 20.0, 40.0)
# Longer than all the pauses of one run while it drains.
GRACE = 10_000.0
DRAINING_PAUSES = (0.0625, 0.5, 4.0, 20.0)
CLIENTS_AT_ONCE = 3
# More than the kernel takes in both directions on behalf of a client that reads nothing.
FLOOD = 20_000
# Ends after which the server does not wait for the client to have read them.
NOTHING_MORE = ("eof", "idle", "send_timeout", "reset")
# Hours that each zone is ahead of UTC.
ZONES = {"UTC": 0.0, "Asia/Jakarta": 7.0, "Asia/Kolkata": 5.5}

PIECES = st.sampled_from(
    [b"TIME\r\n", b"TIME\r\n" * 7, b"TIME please\r\n", b"TI", b"ME\r", b"\n", b"\r\n", b"TIME\n", b"HELLO\r\n",
     b"QUIT\r\n", b"QUIT", b"x" * 30, b"TIME" + b"x" * 600, b"x\r\n" * 4, b"\x00\xff\x1b"]
)  # fmt: skip
SENDS = st.lists(PIECES | st.binary(min_size=1, max_size=12), min_size=1, max_size=4)
LAWS = st.builds(
    Law, limit=st.sampled_from([512, 0, 6, 20]), budget=st.sampled_from([10, 0, 1, 3]), reply=st.booleans()
)

clients: Bundle[Peer] = Bundle("clients")


class Connections(RuleBasedStateMachine):
    """One server and its clients. A subclass has the transport.

    examples, steps: how many there have been.
    """

    start: ClassVar[Callable[..., Awaitable[Running]]]
    examples: ClassVar[int] = 0
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).examples += 1
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.portal = Portal()
        self.patch = patch.object(lane, "_now", self.portal.clock.current_time)
        self.patch.start()
        self.law = Law()
        self.zone = "UTC"
        self.wall = NOW
        self.peers: list[Peer] = []
        self.due: Counter[str] = Counter()
        self.drain_began: float | None = None
        self.failed = True

    # What happens.

    @initialize()
    def start_server(self) -> None:
        self.server = self.portal.run(self._start)
        self.good = self._connect()

    @precondition(lambda self: self.drain_began is None and self._open < CLIENTS_AT_ONCE)
    @rule(target=clients)
    def connect(self) -> Peer:
        return self._connect()

    @rule(client=clients, pieces=SENDS, settle=st.booleans())
    def send(self, client: Peer, pieces: list[bytes], *, settle: bool) -> None:
        if client.closed or client.half_closed or client.flood:
            return
        if self.drain_began is not None:
            pieces = [b"".join(pieces)]  # a server that stops need not wait for the second
        client.late = client.late or client.ended is not None  # it may be answered with a reset
        for piece in pieces:
            self.portal.run(client.send, piece)
            self._sent(client, piece)
            if settle:
                self._settle()

    @rule(client=clients)
    def half_close(self, client: Peer) -> None:
        if client.closed or client.half_closed or client.flood:
            return
        self._settle()
        self.portal.run(client.half_close)
        if client.ended is None:
            client.oracle.end_of_stream()
            self._account(client)

    @rule(client=consumes(clients))
    def close(self, client: Peer) -> None:
        self._leave(client)

    @rule(client=consumes(clients))
    def reset(self, client: Peer) -> None:
        self._leave(client, reset=isinstance(client.stream, trio.SocketStream))

    @rule(client=clients)
    def stop_reading(self, client: Peer) -> None:
        if not client.closed:
            self.portal.call(client.pause)

    @rule(client=clients)
    def read_on(self, client: Peer) -> None:
        self.portal.call(client.resume)
        if client.flood:
            self._flood_taken(client)

    @precondition(lambda self: self.drain_began is None and not self._flooded)
    @rule(client=clients)
    def flood(self, client: Peer) -> None:
        # Once only: for one that has read so much, the kernel keeps much more.
        if client.ended or client.closed or client.half_closed or client.oracle.line or client.times:
            return
        if isinstance(client.stream, trio.SocketStream):
            self._settle()
            self.portal.call(client.pause)
            client.flood = FLOOD
            client.flood_since = self._now
            client.times = {self._jam()}
            self.portal.start_soon(client.send, b"TIME\r\n" * FLOOD)

    @rule(seconds=st.sampled_from(PAUSES), draining=st.sampled_from(DRAINING_PAUSES))
    def wait(self, seconds: float, draining: float) -> None:
        seconds = seconds if self.drain_began is None else draining
        self._settle()
        self.portal.call(self.portal.clock.jump, seconds)
        for peer in self.peers:
            self._time_passed(peer)

    @rule(seconds=st.sampled_from([0.75, 60.0, 3600.0, -3600.0, 86_399.0]))
    def set_wall_clock(self, seconds: float) -> None:
        self._settle()
        self.wall += seconds
        for peer in self._flooded:
            peer.times.add(self._jam())

    @rule(law=LAWS, zone=st.sampled_from(sorted(ZONES)))
    def sighup(self, law: Law, zone: str) -> None:
        self._settle()
        self.law, self.zone = law, zone
        changed = settings_for_test(**self._settings())
        self.portal.call(self.server.reload, changed)
        for peer in self.peers:
            peer.oracle.law = law
            if peer.flood:
                peer.times.add(self._jam())

    @precondition(lambda self: self.drain_began is None and not self._flooded)
    @rule()
    def drain(self) -> None:
        self._settle()
        self.portal.call(self.server.drain)
        self.drain_began = self._now

    # What must hold after each step.

    def check_invariants(self, *arguments: Any, **named: Any) -> None:
        super().check_invariants(*arguments, **named)
        if not hasattr(self, "server"):
            return
        type(self).steps += 1
        if self.good.ended is None:
            self.portal.run(self.good.send, b"TIME\r\n")
            self._sent(self.good, b"TIME\r\n")
        self._settle()

    def teardown(self) -> None:
        try:
            if not self.failed:
                self._end()
        finally:
            self.patch.stop()
            self.portal.close()
        assert self.failed or len(os.listdir("/proc/self/fd")) == self.descriptors, "a descriptor is left"

    def _end(self) -> None:
        for peer in self.peers:
            if not peer.closed:
                self._leave(peer)
        self._settle()
        if self.drain_began is None:
            self.portal.call(self.server.drain)
        self.portal.call(self.portal.clock.jump, LINGER_SECONDS)
        self._settle()
        assert self.server.finished.is_set(), "the server did not stop"
        assert self.server.counters.connections_open == 0
        assert self.server.counters.unaccounted == 0
        assert not self.portal.nursery.child_tasks, "a task is left"
        loud = [event for event in self.server.events if event["level"] in ("warning", "error", "exception")]
        assert not loud, loud

    # The model.

    @property
    def _now(self) -> float:
        return self.portal.clock.current_time()

    @property
    def _open(self) -> int:
        return sum(not peer.closed for peer in self.peers) - 1

    @property
    def _flooded(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.flood]

    def _settings(self) -> dict[str, Any]:
        return {
            "idle_timeout": IDLE, "line_timeout": LINE, "send_timeout": SEND, "grace": GRACE,
            "timezone": self.zone, "max_line_bytes": self.law.limit, "error_budget": self.law.budget,
            "on_reject": "reply" if self.law.reply else "close",
        }  # fmt: skip

    async def _start(self) -> Running:
        return await type(self).start(self.portal.nursery, now=lambda: self.wall, **self._settings())

    def _connect(self) -> Peer:
        stream = self.portal.run(self.server.connect)
        peer = Peer(stream, Oracle(self.law), self._now)
        peer.resume()
        self.peers.append(peer)
        self.portal.start_soon(peer.read)
        self.due["connections"] += 1
        self._settle()
        return peer

    def _jam(self) -> bytes:
        seconds = int(self.wall + ZONES[self.zone] * 3600) % 86_400
        return b"JAM %02d:%02d:%02d\r\n" % (seconds // 3600, seconds // 60 % 60, seconds % 60)

    def _sent(self, peer: Peer, data: bytes) -> None:
        if peer.ended is not None:
            return
        requests = peer.oracle.requests
        peer.oracle.receive(data)
        over = self.drain_began is not None and self._now >= self.drain_began + DRAIN_WINDOW
        if over and not peer.oracle.line and peer.oracle.end is None:
            peer.oracle.drain()
        if not peer.oracle.line:
            peer.first_byte = None
        elif peer.first_byte is None or peer.oracle.requests > requests:
            peer.first_byte = self._now
        peer.idle_since = self._now
        self._account(peer)

    def _leave(self, peer: Peer, *, reset: bool = False) -> None:
        self._settle()
        # Closing with something unread is a reset, too.
        unread = peer.flood > 0 or peer.received != peer.expected
        broken = isinstance(peer.stream, trio.SocketStream) and (reset or unread)
        self.portal.run(partial(peer.close, reset=reset))
        if peer.ended is None:
            peer.oracle.end_of_stream()
            peer.oracle.end = "reset" if broken else "eof"
            self._account(peer)
        self._settle()

    def _time_passed(self, peer: Peer) -> None:
        """Let the deadlines pass that lie behind us by now."""
        now, oracle = self._now, peer.oracle
        draining = self.drain_began is not None and now >= self.drain_began + DRAIN_WINDOW
        if peer.ended is not None:
            return
        if peer.flood:
            if now >= peer.flood_since + SEND:
                oracle.end = "send_timeout"
        elif peer.first_byte is not None:
            if now >= peer.first_byte + LINE:
                oracle.line_timeout()
        elif draining:
            oracle.drain()
        elif now >= peer.idle_since + IDLE:
            oracle.end = "idle"
        self._account(peer)

    def _account(self, peer: Peer) -> None:
        """Add to what is due what the oracle has decided about a peer since the last time."""
        oracle = peer.oracle
        for answer in oracle.answers:
            rules = Rules(max_line_bytes=oracle.law.limit)
            peer.expected += self._jam() if answer == JAM else rules.error_line(Rejection(answer))
        self.due["responses"] += oracle.answers.count(JAM)
        self.due["requests"] += oracle.answers.count(JAM) + len(oracle.rejected)
        for reason, _ in oracle.rejected:
            self.due[f"rejected {reason}"] += 1
        oracle.answers.clear()
        oracle.rejected.clear()
        if peer.ended is None and oracle.end is not None:
            peer.ended, peer.ended_at = oracle.end, self._now
            if peer.flood:
                self._adopt(peer)

    def _flood_taken(self, peer: Peer) -> None:
        """All answers must come now, each of a moment since the flood."""
        def answered() -> None:
            assert len(peer.received) == len(peer.expected) + FLOOD * len(self._jam())

        self._settle(answered)
        assert set(peer.received.removeprefix(peer.expected).splitlines(keepends=True)) <= peer.times
        peer.expected, peer.flood, peer.idle_since = peer.received, 0, self._now
        self.due["requests"] += FLOOD
        self.due["responses"] += FLOOD

    def _adopt(self, peer: Peer) -> None:
        """Take over what was counted of a flood that was cut short: nobody can say where."""
        reason = f"disconnect {peer.ended}"

        def ended() -> None:
            assert self._counted()[reason] == self._due()[reason]

        self._settle(ended)
        peer.flood = 0
        more = self._counted() - self._due()
        error = "send error timeout" if peer.ended == "send_timeout" else "send error reset"
        assert more.keys() <= {"requests", "responses", "rejected incomplete", error}, more
        assert more["requests"] <= FLOOD + 1
        assert more["rejected incomplete"] <= 1
        assert more[error] > 0
        self.due += more

    def _settle(self, holds: Callable[[], None] | None = None) -> None:
        self.failed = True
        self.portal.run(settled, holds or self._hold)
        self.failed = False

    def _hold(self) -> None:
        for peer in self.peers:
            self._hold_peer(peer)
        if not self._flooded:
            counted, due = self._counted(), self._due()
            assert counted == due, f"too many: {counted - due}, missing: {due - counted}"
            assert self.server.counters.unaccounted == 0
            assert self.server.counters.request_duration.count == counted["responses"]

    def _due(self) -> Counter[str]:
        """Return what must have been counted by now."""
        due = Counter(self.due)
        for peer in self.peers:
            gone = peer.closed or peer.half_closed or self._now >= peer.ended_at + LINGER_SECONDS
            if peer.ended is not None and (gone or peer.ended in NOTHING_MORE):
                due[f"disconnect {peer.ended}"] += 1
        return due

    def _hold_peer(self, peer: Peer) -> None:
        if peer.flood:
            return
        if peer.closed or peer.paused or peer.late:
            assert peer.expected.startswith(peer.received)
        else:
            assert peer.received == peer.expected
            assert peer.finished == (peer.ended is not None)

    def _counted(self) -> Counter[str]:
        counters = self.server.counters
        assert not counters.internal_errors
        counted = Counter(
            {"requests": counters.requests, "responses": counters.responses, "connections": counters.connections}
        )
        counted += Counter({f"rejected {each}": times for each, times in counters.rejected.items()})
        counted += Counter({f"send error {each}": times for each, times in counters.send_errors.items()})
        counted += Counter({f"disconnect {each}": times for each, times in counters.disconnects.items()})
        return counted


def over(transport: str) -> type[Connections]:
    """Make the machine of one transport, which counts for itself."""
    return type(f"{transport.title()}Connections", (Connections,), {"start": staticmethod(TRANSPORTS[transport])})
