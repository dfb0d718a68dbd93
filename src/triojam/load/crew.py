"""The workers of a load: their processes, and the sum of what they report."""

import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import ceil
from typing import Any

import trio

from triojam.load.measure.connection import Address
from triojam.load.measure.poller import monotonic
from triojam.load.measure.tally import Tally
from triojam.load.measure.tls import Trust
from triojam.load.plan import Plan
from triojam.load.result.percentiles import Percentiles
from triojam.load.result.result import Moment
from triojam.load.worker import CUT, STOP, TROUBLE, Decoder, Job, Report, encoded

# How long a worker may take to start, and to end after its last report.
START_SECONDS = 30.0
END_SECONDS = 2.0
# The time between two looks at the progress, in seconds, and the longest between two reports of a worker.
TICK_SECONDS = 0.25
# A report takes at most this long to arrive, unless the machine is busy.
ARRIVAL_SECONDS = 0.05
# The workers begin together, this long after the last one is ready.
BEFORE_BEGIN = 0.02
_PIECE = 256 * 1024
# Not -m: what the worker sends must be of the module, not of __main__. A worker imports from where its parent
# does: with -c alone, a file in the working directory could take the place of a module.
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from triojam.load.worker import main; main()"


class WorkerError(Exception):
    """A worker cannot work; the text says why."""


class Crew:
    """The workers of one load.

    trouble: called when requests have failed, soon after. tick: the seconds of a part of the load.
    latencies: the number of right answers by latency, in microseconds. begun: set when the load begins.
    began: when that was, by `monotonic`; 0 = not yet.
    """

    def __init__(
        self,
        plan: Plan,
        address: Address,
        *,
        chance: random.Random,
        tick: float = TICK_SECONDS,
        trouble: Callable[[], None] = lambda: None,
    ) -> None:
        self.trouble = trouble
        self.latencies: Counter[int] = Counter()
        self.began = 0.0
        self._plan, self._address, self._chance = plan, address, chance
        self._sockets: list[socket.socket] = []
        self._reports: dict[int, Report] = {}
        self._recent: Counter[int] = Counter()
        self._waiting = plan.workers
        self._tick = tick
        self._attention = trio.CancelScope()
        self.begun = trio.Event()

    async def run(self, offset: float, bound: float, trust: Trust | None = None) -> None:
        """Run the load until all workers have ended. Raises WorkerError.

        offset, bound: of the server's clock, in seconds. trust: for TLS.
        """
        with _processes(self._plan.workers) as self._sockets, self._attention:
            async with trio.open_nursery() as nursery:
                for number, sock in enumerate(self._sockets):
                    job = Job(
                        plan=self._plan,
                        address=self._address,
                        offset=offset,
                        bound=bound,
                        worker=number,
                        seed=self._chance.getrandbits(64),
                        report_every=self._tick / ceil(self._tick / TICK_SECONDS),
                        trust=trust,
                    )
                    nursery.start_soon(self._attend, number, sock, job)
        if self._attention.cancelled_caught:
            raise WorkerError(f"a worker process did not answer within {END_SECONDS:g} s")

    def stop(self) -> None:
        """Send no more requests, and wait only briefly for those in flight."""
        self._tell(STOP)

    def cut(self) -> None:
        """Do not wait for requests in flight, and only briefly for the workers."""
        self._tell(CUT)
        self._attention.deadline = trio.current_time() + END_SECONDS

    async def next_moment(self) -> Moment:
        """Wait for the end of the next tick, and for its reports; return the progress since the last call."""
        await self.begun.wait()
        elapsed = monotonic() - self.began
        ticks = int(max(elapsed - ARRIVAL_SECONDS, 0.0) / self._tick) + 1
        await trio.sleep(max(ticks * self._tick + ARRIVAL_SECONDS - elapsed, 0.0))
        return self.moment()

    @property
    def seconds(self) -> float:
        """How long the workers have run at their last report, in seconds."""
        return max((each.seconds for each in self._reports.values()), default=0.0)

    @property
    def counted_seconds(self) -> float:
        """The seconds in which answers count as timely; 0 = not known yet."""
        return max((each.counted for each in self._reports.values()), default=0.0)

    @property
    def busy(self) -> float:
        """The share of its time in which the busiest worker had something to do."""
        shares = [1 - each.idle / each.seconds for each in self._reports.values() if each.seconds > 0]
        return max([0.0, *shares])

    @property
    def gave_up(self) -> bool:
        """Whether a worker could open no connection any more."""
        return any(each.gave_up for each in self._reports.values())

    def total(self) -> Tally:
        """Return the sum of all workers, with the latencies."""
        total = Tally()
        for report in self._reports.values():
            total.add(report.tally)
        total.latencies = self.latencies
        return total

    def moment(self) -> Moment:
        """Return the progress since the last call, as far as it was reported."""
        recent, self._recent = self._recent, Counter()
        total, figures = self.total(), Percentiles(recent)
        return Moment(
            seconds=self.seconds,
            settled=total.settled,
            failed=total.failed.total(),
            p50=figures.at(50),
            p99=figures.at(99),
            longest=figures.at(100),
        )

    async def _attend(self, number: int, sock: socket.socket, job: Job) -> None:
        """Give a worker its job, and take its reports."""
        decoder = Decoder()
        with trio.move_on_after(START_SECONDS) as start:
            await _send(sock, encoded(job))
            await _next_message(sock, decoder)
        if start.cancelled_caught:
            raise WorkerError(f"a worker process did not start within {START_SECONDS:g} s")
        self._waiting -= 1
        if not self._waiting:
            self.began = monotonic() + BEFORE_BEGIN
            self.begun.set()
        await self.begun.wait()
        await _send(sock, encoded(self.began))
        while True:
            message = await _next_message(sock, decoder)
            if message == TROUBLE:
                self.trouble()
                continue
            self._take(number, message)
            if message.ended:
                return

    def _take(self, number: int, report: Report) -> None:
        self._reports[number] = report
        self.latencies.update(report.latencies)
        self._recent.update(report.latencies)

    def _tell(self, word: str) -> None:
        for sock in self._sockets:
            with suppress(OSError):  # it has ended
                sock.send(encoded(word))


@contextmanager
def _processes(number: int) -> Iterator[list[socket.socket]]:
    """Start worker processes; yield a socket to each. At the end there are none."""
    processes: list[subprocess.Popen[bytes]] = []
    sockets: list[socket.socket] = []
    try:
        with _signals_held():
            for _ in range(number):
                ours, theirs = socket.socketpair()
                sockets.append(ours)
                with theirs:
                    command = (sys.executable, "-c", _PROGRAM, *sys.path)
                    processes.append(
                        subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)  # noqa: S603  # ours
                    )
                ours.setblocking(False)  # noqa: FBT003  # the standard library's signature
        yield sockets
    finally:
        for sock in sockets:
            sock.close()
        deadline = monotonic() + END_SECONDS
        for process in processes:
            try:
                process.wait(max(deadline - monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Start processes that do not take the signals of a terminal: their parent tells them to stop."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _send(sock: socket.socket, data: bytes) -> None:
    while data:
        await trio.lowlevel.wait_writable(sock)
        try:
            data = data[sock.send(data) :]
        except OSError as exc:
            raise WorkerError("a worker process has ended unexpectedly") from exc


async def _next_message(sock: socket.socket, decoder: Decoder) -> Any:
    """Wait for a message of a worker. Raises WorkerError if it has ended."""
    while not decoder.messages:
        await trio.lowlevel.wait_readable(sock)
        try:
            data = sock.recv(_PIECE)
        except BlockingIOError:
            continue
        except OSError:
            data = b""
        if not data:
            raise WorkerError("a worker process has ended unexpectedly")
        decoder.feed(data)
    return decoder.messages.popleft()
