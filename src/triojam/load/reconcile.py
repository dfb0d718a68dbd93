"""Compares what a load sent with what its servers counted, to the last request.

Behind a load balancer there are several servers, whose counters are added up. They are read before the
load, repeatedly during it, and after it. When a process ends, its counts since the last reading are lost;
the result says so, and how many requests they can be at most.
"""

import http.client
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Self

import trio
from prometheus_client.parser import text_string_to_metric_families

from triojam.load.measure.tally import Tally

READ_TIMEOUT = 5.0
LONGEST_PAGE = 4_000_000
# How long the server may take to count the last answer.
SETTLE_SECONDS = 2.0
SETTLE_INTERVAL = 0.02
READ_INTERVAL = 0.5

_COUNTERS = {
    "triojam_requests_total": "requests",
    "triojam_responses_total": "responses",
    "triojam_rejected_total": "rejected",
    "triojam_response_send_errors_total": "send_errors",
}


class MetricsError(Exception):
    """The metrics cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The counters of one process, or sums over several."""

    requests: int = 0
    responses: int = 0
    rejected: int = 0
    send_errors: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Counts)))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(Counts)))

    @property
    def unaccounted(self) -> int:
        """Requests in no other counter."""
        return self.requests - self.responses - self.rejected - self.send_errors


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of the metrics. process: when the process started, which identifies it."""

    process: float
    counts: Counts


class _Server:
    """What one server has counted since the first reading, over all its processes. url: of its metrics."""

    def __init__(self, url: str, first: Reading) -> None:
        self._url = url
        self._first = first
        self._latest = {first.process: first.counts}

    async def read(self) -> None:
        """Read the counters again. Raises MetricsError."""
        reading = await read_counts(self._url)
        self._latest[reading.process] = reading.counts

    async def keep_reading(self) -> None:
        """Read repeatedly until cancelled, so that few counts are lost when a process ends."""
        while True:
            await trio.sleep(READ_INTERVAL)
            with suppress(MetricsError):  # during a restart
                await self.read()

    @property
    def restarts(self) -> int:
        """How many processes have replaced the first one."""
        return len(self._latest) - 1

    @property
    def counted(self) -> Counts:
        """The counts since the first reading, as far as they were read."""
        return sum(self._latest.values(), Counts()) - self._first.counts


class Reconciliation:
    """What all servers of a load have counted since the first reading."""

    def __init__(self, servers: Sequence[_Server]) -> None:
        self._servers = servers

    @classmethod
    async def begin(cls, urls: Sequence[str]) -> Self:
        """Read the counters before a load. Raises MetricsError."""
        return cls([_Server(url, await read_counts(url)) for url in urls])

    async def keep_reading(self) -> None:
        """Read repeatedly until cancelled; a server that does not answer does not delay the others."""
        async with trio.open_nursery() as nursery:
            for server in self._servers:
                nursery.start_soon(server.keep_reading)

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
    def restarts(self) -> int:
        """How many processes have replaced others."""
        return sum(server.restarts for server in self._servers)

    @property
    def counted(self) -> Counts:
        """The sums of all servers."""
        return sum((server.counted for server in self._servers), Counts())

    def missing(self, tally: Tally) -> dict[str, int]:
        """Return where the failed requests were lost, by the server's counters; no number may be negative."""
        counted = self.counted
        return {
            "sent, but not counted": tally.sent - counted.requests,
            "answered, but not received": counted.responses - tally.answered,
            "rejected, but not received": counted.rejected - tally.rejected,
            "send errors": counted.send_errors,
        }

    def faults(self, tally: Tally) -> list[str]:
        """Return what does not balance. After a restart, only too many counts are a fault."""
        if self.restarts:
            surplus = self.counted.requests - tally.sent
            return [f"{surplus:,} more requests were counted than were sent"] if surplus > 0 else []
        unaccounted = self.counted.unaccounted
        faults = [f"{unaccounted:,} requests are in no other counter"] if unaccounted else []
        for what, number in self.missing(tally).items():
            if number < 0:
                faults.append(
                    f"{what}: {number:,}, which is less than none; did another client send requests?"
                )
        return faults


def metrics_url(text: str) -> str:
    """Complete an address of metrics, such as HOST:PORT. Raises ValueError that says what is expected."""
    url = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("HOST:PORT or a URL such as http://HOST:45001/metrics")
    return url._replace(path=url.path if url.path not in ("", "/") else "/metrics").geturl()


async def read_counts(url: str) -> Reading:
    """Read a server's metrics once. Raises MetricsError."""
    with trio.move_on_after(READ_TIMEOUT):
        return await trio.to_thread.run_sync(_read_counts, url, abandon_on_cancel=True)
    raise MetricsError(f"{url}: not read within {READ_TIMEOUT:g} s")


def _read_counts(url: str) -> Reading:
    sums = dict.fromkeys(_COUNTERS.values(), 0)
    process, found = 0.0, False
    try:
        # Without the proxies of the environment: they are for the web, and the load does not use them either.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=READ_TIMEOUT) as response:
            text = response.read(LONGEST_PAGE).decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in _COUNTERS:
                    found = True
                    sums[_COUNTERS[sample.name]] += int(sample.value)
                elif sample.name == "process_start_time_seconds":
                    process = sample.value
    except (OSError, ValueError, OverflowError, http.client.HTTPException) as exc:
        reason = getattr(exc, "reason", exc)
        text = " ".join(str(getattr(reason, "strerror", None) or reason).split())
        raise MetricsError(f"{url}: {text}") from exc
    if not found:
        raise MetricsError(f"{url}: these are not triojam's metrics")
    return Reading(process, Counts(**sums))
