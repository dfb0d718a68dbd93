"""The model of one state machine: a server, its clients, its clocks, and the answers and counts to expect."""

import gc
import math
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import trio

from tests.fuzz.accounts import counted
from tests.fuzz.oracle import JAM, Law, Oracle
from tests.fuzz.peer import Peer
from tests.fuzz.trio_thread import TrioThread, settled
from tests.helpers.program import descriptors
from tests.helpers.servers import NOW, Running
from triojam.core.protocol import Rules
from triojam.core.reasons import Rejection
from triojam.serving.deadlines import DRAIN_WINDOW, FAREWELL, LINGER_SECONDS, ON_ITS_WAY

IDLE, LINE, SEND, GRACE = 60.0, 10.0, 10.0, 8.0
# More requests than the kernel buffers in both directions for a client that reads nothing.
FLOOD = 20_000
# Hours ahead of UTC.
ZONES = {"UTC": 0.0, "Asia/Jakarta": 7.0, "Asia/Kolkata": 5.5}
# After these ends the server does not wait until the client has read everything.
NOTHING_MORE = ("eof", "idle", "send_timeout", "reset")


class Model:
    """One server over one transport, and the expected result of everything that happened to it.

    peers: all clients so far. good: the client that always behaves well.
    due: the expected counts, without the ends of connections: those follow from the peers.
    failed: whether a check failed. The final checks then mean nothing.
    """

    def __init__(self, start: Callable[..., Awaitable[Running]]) -> None:
        self._descriptors = len(descriptors(os.getpid()))
        self.trio = TrioThread()
        self._law = Law()
        self._zone = "UTC"
        self._wall = NOW
        self._drain_began = math.inf
        self.failed = True
        self.peers: list[Peer] = []
        self.due: Counter[str] = Counter()
        self.server = self.trio.run(self._start, start)
        self.good = self.connect()

    @property
    def draining(self) -> bool:
        """Whether the server has been told to stop."""
        return self._drain_began < math.inf

    @property
    def flooded(self) -> list[Peer]:
        """The clients with requests that the server may not have read."""
        return [peer for peer in self.peers if peer.flood]

    def connect(self) -> Peer:
        """Open another connection."""
        peer = Peer(self.trio.run(self._open), Oracle(self._law), self._now)
        peer.resume()
        self.peers.append(peer)
        self.trio.start_soon(peer.read)
        self.due["connections"] += 1
        self.settle()
        return peer

    def send(self, peer: Peer, data: bytes) -> None:
        """Send some bytes in one piece."""
        peer.late = peer.late or peer.ended is not None  # it may be answered with a reset
        self.trio.run(peer.send, data)
        if peer.ended is None:
            self._sent(peer, data)

    def half_close(self, peer: Peer) -> None:
        """End a client's sending side."""
        self.settle()
        self.trio.run(peer.half_close)
        if peer.ended is None:
            peer.oracle.end_of_stream()
            self._account(peer)

    def start_flood(self, peer: Peer) -> None:
        """Let a client that does not read send more than the kernel buffers for it."""
        self.settle()
        self.trio.call(peer.pause)
        peer.flood, peer.flood_since, peer.times = FLOOD, self._now, {self._jam()}
        self.trio.start_soon(peer.send, b"TIME\r\n" * FLOOD)

    def take_flood(self, peer: Peer) -> None:
        """Let it read again: now all answers must come, each with a time since the flood."""
        self.trio.call(peer.resume)
        self.settle(partial(_hold_flood, peer))
        peer.expected, peer.flood, peer.idle_since = peer.received, 0, self._now
        peer.oracle.bad = 0
        self.due["requests"] += FLOOD
        self.due["responses"] += FLOOD

    def leave(self, peer: Peer, *, reset: bool = False) -> None:
        """Close a client's connection, or reset it."""
        self.settle()
        # Closing with something unread is a reset, too.
        unread = peer.flood > 0 or peer.received != peer.expected
        reset = reset and peer.on_socket
        broken = peer.on_socket and (reset or unread)
        self.trio.run(partial(peer.close, reset=reset))
        if peer.ended is None:
            peer.oracle.end_of_stream()
            peer.oracle.end = "reset" if broken else "eof"
            self._account(peer)
        self.settle()

    def wait(self, seconds: float) -> None:
        """Move the clock of all deadlines forward."""
        self.settle()
        self.trio.call(self.trio.clock.jump, seconds)
        for peer in sorted(
            self.peers, key=lambda peer: peer.flood
        ):  # a flood adopts what remains, so it is last
            if peer.ended is None:
                self._time_passed(peer)

    def set_wall_clock(self, seconds: float) -> None:
        """Step the clock from which answers are made."""
        self.settle()
        self._wall += seconds
        self._times_changed()

    def reload(self, law: Law, zone: str) -> None:
        """Change the settings of the running server."""
        self.settle()
        longest = max(len(peer.oracle.line) for peer in self.peers)
        if self.server.lane is not None and 0 < law.limit <= longest:
            # The lane applies the new limit to the start of a line at once; the handler, at the next byte.
            law = replace(law, limit=0)
        self._law, self._zone = law, zone
        self.trio.call(partial(self.server.reload, **self._settings()))
        for peer in self.peers:
            peer.oracle.law = law
        self._times_changed()

    def drain(self) -> None:
        """Tell the server to stop."""
        self.settle()
        self.trio.call(self.server.drain)
        self._drain_began = self._now

    def settle(self, holds: Callable[[], None] | None = None) -> None:
        """Wait until nothing moves any more, then check `holds`, by default the whole model."""
        self.failed = True
        self.trio.run(settled, holds or self._hold)
        self.failed = False

    def close(self) -> None:
        """Stop the server, and check that it leaves nothing behind."""
        try:
            if not self.failed:
                self._end()
        finally:
            self.trio.close()
        if not self.failed and len(descriptors(os.getpid())) != self._descriptors:
            gc.collect()  # an earlier example that failed may have left garbage
            assert len(descriptors(os.getpid())) == self._descriptors, "a descriptor is left"

    def _end(self) -> None:
        for peer in self.peers:
            if not peer.closed:
                self.leave(peer)
        if not self.draining:
            self.drain()
        self.wait(LINGER_SECONDS)
        self.settle()
        assert self.server.finished.is_set(), "the server did not stop"
        assert self.server.counters.connections_open == 0
        assert not self.trio.nursery.child_tasks, "a task is left"
        loud = [event for event in self.server.events if event["level"] not in ("debug", "info")]
        assert not loud, loud

    @property
    def _now(self) -> float:
        return self.trio.clock.current_time()

    def _settings(self) -> dict[str, Any]:
        return {
            "idle_timeout": IDLE, "line_timeout": LINE, "send_timeout": SEND, "grace": GRACE,
            "timezone": self._zone, "max_line_bytes": self._law.limit, "error_budget": self._law.budget,
            "on_reject": "reply" if self._law.reply else "close",
        }  # fmt: skip

    async def _start(self, start: Callable[..., Awaitable[Running]]) -> Running:
        return await start(self.trio.nursery, now=lambda: self._wall, **self._settings())

    async def _open(self) -> trio.abc.HalfCloseableStream:
        return await self.server.connect()

    def _times_changed(self) -> None:
        for peer in self.flooded:
            peer.times.add(self._jam())

    def _jam(self) -> bytes:
        seconds = int(self._wall + ZONES[self._zone] * 3600) % 86_400
        return b"JAM %02d:%02d:%02d\r\n" % (seconds // 3600, seconds // 60 % 60, seconds % 60)

    def _sent(self, peer: Peer, data: bytes) -> None:
        requests = peer.oracle.requests
        peer.oracle.receive(data)
        over = self._now >= self._drain_began + DRAIN_WINDOW
        if over and not peer.oracle.line and peer.oracle.end is None:
            peer.oracle.drain()
        if not peer.oracle.line:
            peer.first_byte = None
        elif peer.first_byte is None or peer.oracle.requests > requests:
            peer.first_byte = self._now
        peer.idle_since = self._now
        self._account(peer)

    def _time_passed(self, peer: Peer) -> None:
        """Apply the deadlines that have passed."""
        now, oracle = self._now, peer.oracle
        if peer.flood:
            if now >= peer.flood_since + SEND:
                oracle.end = "send_timeout"
        elif now >= self._drain_began + GRACE:
            oracle.drain(told=False)
        elif peer.first_byte is not None:
            if now >= peer.first_byte + LINE:
                oracle.line_timeout()
            elif now >= self._drain_began + GRACE - FAREWELL:
                oracle.drain()
        elif now >= max(self._drain_began + DRAIN_WINDOW, peer.idle_since + ON_ITS_WAY):
            oracle.drain()
        elif now >= peer.idle_since + IDLE:
            oracle.end = "idle"
        self._account(peer)

    def _account(self, peer: Peer) -> None:
        """Add what the oracle has decided about a peer since the last call."""
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
            # The handler closes a client at once that has sent nothing; the lane may have answered it.
            peer.told_nothing = oracle.end == "drain" and peer.silent and self.server.lane is None
            if peer.flood:
                self._adopt(peer)

    def _adopt(self, peer: Peer) -> None:
        """Accept the counts of a flood that was cut short: the model cannot know where."""
        reason = f"disconnect {peer.ended}"

        def ended() -> None:
            assert counted(self.server.counters)[reason] == self._due()[reason]

        self.settle(ended)
        peer.flood, peer.cut = 0, True
        more = counted(self.server.counters) - self._due()
        error = "send error timeout" if peer.ended == "send_timeout" else "send error reset"
        assert more.keys() <= {"requests", "responses", "rejected incomplete", error}, more
        assert more["requests"] <= FLOOD + 1
        assert more["rejected incomplete"] <= 1
        assert more[error] > 0
        self.due += more

    def _hold(self) -> None:
        for peer in self.peers:
            self._hold_peer(peer)
        if not self.flooded:
            is_counted, due = counted(self.server.counters), self._due()
            assert is_counted == due, f"too many: {is_counted - due}, missing: {due - is_counted}"
            assert self.server.counters.unaccounted == 0
            assert self.server.counters.request_duration.count == due["responses"]

    def _due(self) -> Counter[str]:
        """Return the counts to expect now."""
        due = Counter(self.due)
        for peer in self.peers:
            latest = min(peer.ended_at + LINGER_SECONDS, self._drain_began + GRACE)
            gone = peer.closed or peer.half_closed or self._now >= latest
            if peer.ended is not None and (gone or peer.told_nothing or peer.ended in NOTHING_MORE):
                due[f"disconnect {peer.ended}"] += 1
        return due

    def _hold_peer(self, peer: Peer) -> None:
        if peer.flood or peer.cut:
            return
        if peer.closed or peer.paused or peer.late:
            assert peer.expected.startswith(peer.received)
        else:
            assert peer.received == peer.expected
            assert peer.finished == (peer.ended is not None)


def _hold_flood(peer: Peer) -> None:
    times = peer.received.removeprefix(peer.expected).splitlines(keepends=True)
    assert len(times) == FLOOD
    assert set(times) <= peer.times
