"""A load in a simulated time: the real generator, real sockets, and a clock that jumps instead of waiting.

Client and server share one thread. The server acts before each look of the client at its sockets, and the
clock jumps to the next moment at which either of them does something: a patience of seconds takes no time.
"""

import errno
import random
import selectors
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, inf
from types import SimpleNamespace
from unittest.mock import patch

from tests.fuzz.hostile import HostileServer, authority, is_honest
from triojam.client.time_of_day import DAY
from triojam.load.measure import connection as connections
from triojam.load.measure import generator, loop
from triojam.load.measure.clock import ServerClock
from triojam.load.measure.generator import LoadGenerator
from triojam.load.measure.poller import Poller
from triojam.load.measure.tally import LATE, Tally
from triojam.load.measure.tls import Trust
from triojam.load.plan import Plan

# In seconds.
BEGAN = 1000.0
OUTAGE = 3.0
SWEEP = 0.02
# How long one look at the clock takes: for a fast client, a slow one, and one that is much too slow.
QUICK, SLOW, SLUGGISH = 1e-6, 1e-4, 3e-3
# How many looks without an event, a pause or a request are a loop without an end.
MOST_LOOKS = 5000
# How many connections are too many for any load here: it connects again and again without a pause.
MOST_CONNECTIONS = 5000


class _Clock:
    """A clock that only moves when it is read, a little, and when it is set."""

    def __init__(self, step: float) -> None:
        self.now = BEGAN
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class _Poller(Poller[connections.Connection]):
    """Lets the server act before each look at the sockets, and lets the clock jump instead of waiting."""

    def __init__(self, server: HostileServer, clock: _Clock, *, edge: bool) -> None:
        super().__init__()
        if not edge:
            self._epoll.close()
            self.edge, self._selector = False, selectors.DefaultSelector()
        self.closed = False
        self.load: LoadGenerator | None = None
        self.ends_at = inf
        self._server, self._clock = server, clock
        self._looks = self._sent = 0

    def close(self) -> None:
        """Close it."""
        self.closed = True
        super().close()

    def ask(self, timeout: float = 0) -> list[tuple[connections.Connection, int]]:
        """Return new events."""
        assert not timeout
        assert self._clock.now < self.ends_at, "the load does not end"
        self._server.step(self._clock.now)
        events = super().ask()
        assert self.load is not None
        if events or self._sent != self.load.tally.sent:
            self._looks, self._sent = 0, self.load.tally.sent
        self._looks += 1
        assert self._looks < MOST_LOOKS or self._clock.step > QUICK, "the load never waits"
        return events

    def stand_still(self, seconds: float) -> None:
        """Let time pass while only the server acts."""
        self._clock.now += seconds
        self._server.step(self._clock.now)

    def wait(self, seconds: float) -> list[tuple[connections.Connection, int]]:
        """Let time pass until there are events."""
        self._looks = 0
        until = self._clock.now + seconds
        while True:
            if (events := self.ask()) or self._clock.now >= until:
                return events
            self._clock.now = max(self._clock.now, min(until, self._server.due))


class _Socket(socket.socket):
    """A socket of the client. made: all of them. halves: the kernel takes only a part, or nothing."""

    made: list["_Socket"]
    halves: bool

    def __init__(self, family: int, kind: int) -> None:
        super().__init__(family, kind)
        self.made.append(self)
        assert len(self.made) < MOST_CONNECTIONS, "the load connects without a pause"
        self._sends = 0

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]  # the client sends bytes only
        """Send."""
        self._sends += 1
        if self.halves and self._sends % 2:  # never twice in a row: then the kernel would not tell of room
            if self._sends == 1 or len(data) < 2:
                raise BlockingIOError(errno.EAGAIN, "")
            data = data[: len(data) // 2]
        return super().send(data, flags)


@dataclass(frozen=True)
class Case:
    """How a load runs.

    worker: its number. step: how long a look at its clock takes. edge: whether it has epoll. halves: whether
    the kernel takes what is sent only in parts. piece: how many bytes are read at once. stops, cuts: when it
    is stopped or cut, in seconds after its beginning. sleeps: when it stands still, and for how long.
    """

    plan: Plan
    worker: int = 0
    step: float = QUICK
    edge: bool = True
    halves: bool = False
    piece: int = 65536
    stops: float = inf
    cuts: float = inf
    sleeps: tuple[float, float] | None = None

    @property
    def bound(self) -> float:
        """How long the load may take, in seconds."""
        plan = self.plan
        # Each answer of a pipeline has its own patience.
        last = plan.patience * (plan.pipeline + 1)
        if plan.rate is not None:
            seconds = plan.warm_up + self.open_seconds + plan.patience
        elif plan.requests is None:
            seconds = plan.warm_up + plan.seconds
        else:
            seconds = plan.warm_up + (plan.requests + plan.connections) * (last + 2 * OUTAGE)
        stopped = min(self.stops + generator.LAST_ANSWERS_SECONDS, self.cuts)
        return (
            min(seconds + last + OUTAGE, stopped)
            + 0.1
            + 2000 * self.step
            + (self.sleeps[1] if self.sleeps else 0)
        )

    @property
    def open_seconds(self) -> float:
        """How long the rate of an open loop lasts, in seconds."""
        plan = self.plan
        assert plan.rate is not None
        if plan.requests is None:
            return plan.seconds
        return plan.requests / ((plan.rate + (plan.last_rate or plan.rate)) / 2)

    def due(self, moment: float) -> int:
        """Return how many requests of this worker are due in the first `moment` seconds of an open loop."""
        plan = self.plan
        assert plan.rate is not None
        beyond = min(moment - plan.warm_up, self.open_seconds)
        bend = ((plan.last_rate or plan.rate) - plan.rate) / self.open_seconds
        if beyond <= 0:
            total = plan.rate * moment
        else:
            total = plan.rate * plan.warm_up + plan.rate * beyond + bend * beyond**2 / 2
        # The first request is due at the beginning.
        return max(0, ceil((ceil(total - 1e-6) - self.worker) / plan.workers))


def run_load(case: Case, server: HostileServer) -> LoadGenerator:
    """Run a load against a server, check it, and return it."""
    clock = _Clock(case.step)
    poller = _Poller(server, clock, edge=case.edge)
    sockets: type[_Socket] = type("Socket", (_Socket,), {"made": [], "halves": case.halves})
    names = SimpleNamespace(**vars(socket) | {"socket": sockets})
    trust = Trust("localhost", authority().cert_pem.bytes().decode()) if server.tls else None
    with ExitStack() as stack:
        for module, name, value in (
            (loop, "Poller", lambda: poller),
            (loop, "monotonic", clock),
            (generator, "monotonic", clock),
            (connections, "monotonic", clock),
            (generator, "LONGEST_OUTAGE", OUTAGE),
            (generator, "SWEEP_SECONDS", SWEEP),
            (connections, "socket", names),
            (connections, "RECEIVE_BYTES", case.piece),
        ):
            stack.enter_context(patch.object(module, name, value))
        load = LoadGenerator(
            case.plan,
            server.address,
            ServerClock(lambda now: (now + server.base) % DAY),
            chance=random.Random(1),
            worker=case.worker,
            began=BEGAN,
            trust=trust,
        )
        poller.load, poller.ends_at = load, BEGAN + case.bound
        load.loop.at(BEGAN + case.stops, lambda _now: load.stop())
        load.loop.at(BEGAN + case.cuts, lambda _now: load.cut())
        if (sleeps := case.sleeps) is not None:
            load.loop.at(BEGAN + sleeps[0], lambda _now: poller.stand_still(sleeps[1]))
        load.run()
    server.step(clock.now)
    assert poller.closed
    assert all(each.fileno() < 0 for each in sockets.made), "a socket is open"
    _check_counts(load.tally, load, server, case.plan.pipeline)
    _check_plan(load.tally, load, case)
    pauses = (load.ended - load.began) / generator.RECONNECT_PAUSE
    useless = len(sockets.made) - load.tally.opened
    assert useless <= case.plan.connections * (pauses + 1), "the load connects without a pause"
    if is_honest(server.scripts):
        _check_honest(load.tally, server, case)
    elif not server.tls:
        assert server.lines_received() <= load.tally.sent, "more was sent than counted"
    return load


def _check_counts(tally: Tally, load: LoadGenerator, server: HostileServer, pipeline: int) -> None:
    """Check what is true of every load: each request has one outcome, by what the server has sent."""
    late = sum(times for cause, times in tally.failed.items() if cause.startswith(generator.NO_ANSWER))
    lasted = (load.ended - load.began) * 1e6 + 1
    assert tally.in_flight == 0
    assert len(load.records.latencies) + tally.warmed_up == tally.settled
    assert tally.answered <= server.said(rb"JAM \d\d:\d\d:\d\d\r")
    assert tally.rejected - tally.closed_instead <= server.said(rb"ERROR (bad_command|too_long)\b.*\r")
    assert tally.closed_instead <= tally.opened <= len(server.connections) + server.backlog + 1
    for cause in tally.failed | tally.unasked:
        if cause.startswith("ERROR "):
            # A last word fails all requests in flight.
            word = cause.removesuffix(" after half an answer")
            most = server.said(word.encode() + rb"\b") * pipeline
            assert 0 < tally.failed[cause] + tally.unasked[cause] <= most, cause
    given_up = tally.never_sent + late  # those of the warm-up are not measured
    warm_up = load.records.measured_from > BEGAN
    assert tally.longer.total() <= given_up if warm_up else tally.longer.total() == given_up
    assert all(latency <= lasted for latency in [*load.records.latencies, *tally.longer])
    assert (tally.latest > LATE) == (tally.late + tally.left_out > 0)
    assert tally.own_seconds >= 0
    assert 0 <= tally.timely <= tally.settled
    assert 0 <= load.counted_seconds <= load.ended - load.began
    assert all(times > 0 for times in [*(+tally.failed).values(), *tally.unasked.values()])


def _check_plan(tally: Tally, load: LoadGenerator, case: Case) -> None:
    """Check that what was due was sent, or is counted as not sent."""
    plan, lasted = case.plan, load.ended - load.began
    interrupted = min(case.stops, case.cuts) <= lasted or load.gave_up
    if plan.rate is not None:
        told = tally.sent + tally.never_sent + tally.left_out
        slept = case.sleeps[1] if case.sleeps else 0.0
        latest = case.due(
            min(case.stops + SWEEP + slept + 100 * case.step, lasted, plan.warm_up + case.open_seconds)
            + 20 * case.step
        )
        assert told <= latest, "more than were due"
        if not interrupted:
            assert told >= case.due(plan.warm_up + case.open_seconds) - (plan.last_rate is not None)
    elif plan.requests is not None and not plan.warm_up:
        share = (plan.requests - case.worker + plan.workers - 1) // plan.workers
        assert tally.sent <= share
        assert tally.sent == share or interrupted
    if case.step == QUICK and case.piece == 65536 and case.sleeps is None:
        assert tally.late == tally.left_out == 0, "this client is fast"


def _check_honest(tally: Tally, server: HostileServer, case: Case) -> None:
    """Check that no right answer is blamed on the server, however slow the client is."""
    # It takes long to read one answer, or the time for the last answers passes while the client stands still.
    own = case.piece < 65536 and (case.step > QUICK or case.sleeps)
    own = own or (case.step == SLUGGISH and case.plan.patience < 1)  # a step takes longer than the patience
    interrupted = case.cuts < inf or (case.stops < inf and case.sleeps)
    if own or interrupted or server.backlog == 0 or server.deaf_until > BEGAN:
        return
    assert not any((tally.failed, tally.unconnected, tally.unasked)), tally
    assert tally.sent == server.lines_received()
    places, batches = case.plan.connections // case.plan.workers, tally.sent // case.plan.pipeline
    assert len(server.connections) >= min(places, batches), "a connection is not used"
    if case.step < SLUGGISH and not case.sleeps and not case.worker and tally.sent:
        assert (tally.warmed_up > 0) == (case.plan.warm_up > 0)
