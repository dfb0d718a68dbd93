"""A worker: a process that runs one load generator, and says what it has measured.

It talks to its parent over a socket, which is its standard input. Each message is a pickled object after its
length; both sides are the same program of the same user. The parent sends a Job, then the time at which to
begin, and perhaps words: STOP, CUT. The worker sends READY, then Reports. If the parent ends, so does the
worker.
"""

import pickle
import random
import socket
import struct
import sys
from array import array
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from triojam.load.measure.clock import ServerClock
from triojam.load.measure.connection import Address
from triojam.load.measure.generator import LoadGenerator
from triojam.load.measure.tally import Tally
from triojam.load.measure.tls import Trust
from triojam.load.plan import Plan

# How often a worker looks for words of its parent, and for trouble to report.
LISTEN_SECONDS = 0.01
# Trouble is not reported more often than this.
TROUBLE_SECONDS = 0.1

READY, STOP, CUT, TROUBLE = "ready", "stop", "cut", "trouble"
PARENT_ENDED = (EOFError, OSError)
_LENGTH = struct.Struct("!I")


@dataclass(frozen=True)
class Job:
    """What a worker is to do.

    offset, bound: of the server's clock, in seconds. report_every: the seconds between two reports.
    """

    plan: Plan
    address: Address
    offset: float
    bound: float
    worker: int
    seed: int
    report_every: float
    trust: Trust | None = None


@dataclass(frozen=True)
class Report:
    """What a worker has measured: totals, and the latencies since the report before, in microseconds.

    seconds: since the beginning. counted: those in which answers count as timely; 0 = not known yet. idle:
    those in which there was nothing to do. ended: whether this is the last report. gave_up: whether no
    connection could be opened any more.
    """

    tally: Tally
    latencies: "array[int]"
    seconds: float
    idle: float
    counted: float
    ended: bool = False
    gave_up: bool = False


def encoded(message: object) -> bytes:
    """Return a message as bytes with its length."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class Decoder:
    """Takes the bytes of messages in pieces. messages: those that are complete."""

    def __init__(self) -> None:
        self.messages: deque[Any] = deque()
        self._received = bytearray()

    def feed(self, data: bytes) -> None:
        """Take some bytes."""
        self._received += data
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if len(self._received) < _LENGTH.size + length:
                break
            body = bytes(self._received[_LENGTH.size : _LENGTH.size + length])
            del self._received[: _LENGTH.size + length]
            self.messages.append(pickle.loads(body))  # noqa: S301  # from the same program, see above


class _Worker:
    """One load generator and the socket to the parent."""

    def __init__(self, sock: socket.socket, decoder: Decoder, load: LoadGenerator, every: float) -> None:
        self._sock, self._decoder, self._load, self._every = sock, decoder, load, every
        self._outbox = bytearray()
        self._failures = 0
        self._quiet_until = 0.0

    def run(self) -> None:
        """Run the load, with reports."""
        self._sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
        self._load.loop.at(self._load.began, self._listen)
        self._load.loop.at(self._load.began + self._every, self._report)
        self._load.run()
        self._sock.setblocking(True)  # noqa: FBT003
        self._sock.sendall(self._outbox + encoded(self._made(ended=True)))

    def _listen(self, now: float) -> None:
        """Heed the words of the parent, and send what is to be sent; neither waits."""
        self._load.loop.at(now + LISTEN_SECONDS, self._listen)
        try:
            if data := self._sock.recv(4096):
                self._decoder.feed(data)
            else:
                self._load.cut()  # the parent has ended
        except BlockingIOError:
            pass
        except OSError:
            self._load.cut()
        while self._decoder.messages:
            (self._load.stop if self._decoder.messages.popleft() == STOP else self._load.cut)()
        tally = self._load.tally
        failures = tally.failed.total() + tally.unconnected.total() + tally.unasked.total()
        if failures > self._failures and now >= self._quiet_until:
            self._failures, self._quiet_until = failures, now + TROUBLE_SECONDS
            self._outbox += encoded(TROUBLE)
        self._send()

    def _report(self, now: float) -> None:
        began = self._load.began
        self._load.loop.at(began + self._every * (int((now - began) / self._every) + 1), self._report)
        if not self._outbox:  # the parent takes its reports
            self._outbox += encoded(self._made())
            self._send()

    def _send(self) -> None:
        if self._outbox:
            try:
                del self._outbox[: self._sock.send(self._outbox)]
            except BlockingIOError:
                pass
            except OSError:
                self._load.cut()

    def _made(self, *, ended: bool = False) -> Report:
        load = self._load
        seconds = load.ended - load.began if ended else load.elapsed
        return Report(
            load.tally,
            load.records.take_latencies(),
            seconds,
            load.idle,
            load.counted_seconds,
            ended,
            load.gave_up,
        )


def _next_message(sock: socket.socket, decoder: Decoder) -> Any:
    """Wait for one message. Raises EOFError if the parent has ended."""
    while not decoder.messages:
        if not (data := sock.recv(65536)):
            raise EOFError
        decoder.feed(data)
    return decoder.messages.popleft()


def main() -> None:
    """Do the job that arrives on standard input, which is a socket."""
    decoder = Decoder()
    with socket.socket(fileno=sys.stdin.fileno()) as sock, suppress(*PARENT_ENDED):
        job: Job = _next_message(sock, decoder)
        clock = ServerClock.of_this_machine(job.offset, job.bound)
        sock.sendall(encoded(READY))
        load = LoadGenerator(
            job.plan,
            job.address,
            clock,
            chance=random.Random(job.seed),  # noqa: S311  # not a secret
            worker=job.worker,
            began=_next_message(sock, decoder),
            trust=job.trust,
        )
        _Worker(sock, decoder, load, job.report_every).run()
