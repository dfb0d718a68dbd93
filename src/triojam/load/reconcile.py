"""Holds what a load sent against what the server counted, to the last request.

The server's counters are read before the load, now and then during it, and after. A process that ended
took the counts since its last reading with it; that is said, and how many they can be.
"""

import http.client
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field, fields

import trio
from prometheus_client.parser import text_string_to_metric_families

from triojam.load.checker import Tally

READ_TIMEOUT = 5.0
LONGEST_PAGE = 4_000_000
# After the last answer, the server has this long to count it.
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
    """The metrics cannot be read, and the text says why."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What one process has counted, or several together."""

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
        """Requests of which nothing has become."""
        return self.requests - self.responses - self.rejected - self.send_errors


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a server's metrics. process: when it started, which tells one process from the next."""

    process: float
    counts: Counts


@dataclass
class Reconciliation:
    """What the server has counted between the first reading and the last, over all its processes."""

    first: Reading
    last: Reading
    _ended: Counts = field(default_factory=Counts)
    restarts: int = 0

    def add(self, reading: Reading) -> None:
        """Take another reading."""
        if reading.process != self.last.process:
            self._ended += self.last.counts
            self.restarts += 1
        self.last = reading

    @property
    def counted(self) -> Counts:
        """What is known to have been counted since the first reading."""
        return self._ended + self.last.counts - self.first.counts

    def missing(self, tally: Tally) -> dict[str, int]:
        """Say what the load's failed requests are, by the server's account; none can be below 0."""
        counted = self.counted
        return {
            "sent, but not counted": tally.sent - counted.requests,
            "answered, but not received": counted.responses - tally.answered,
            "rejected, but not received": counted.rejected - tally.rejected,
            "send errors": counted.send_errors,
        }

    def faults(self, tally: Tally) -> list[str]:
        """Say what does not add up, and should. Of a process that ended, only too high counts are a fault."""
        if self.restarts:
            surplus = self.counted.requests - tally.sent
            return [f"the server counted {surplus:,} requests more than were sent"] if surplus > 0 else []
        unaccounted = self.counted.unaccounted
        faults = [f"{unaccounted:,} requests are in no other counter of the server"] if unaccounted else []
        for what, number in self.missing(tally).items():
            if number < 0:
                faults.append(f"{what}: {number:,}, which is less than none; was anybody else asking?")
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


async def first_reading(url: str) -> Reconciliation:
    """Read where the counters stand before a load. Raises MetricsError."""
    reading = await read_counts(url)
    return Reconciliation(reading, reading)


async def keep_reading(url: str, balance: Reconciliation) -> None:
    """Read now and then, until cancelled, so that a process that ends takes little with it."""
    while True:
        await trio.sleep(READ_INTERVAL)
        with suppress(MetricsError):  # while it restarts
            balance.add(await read_counts(url))


async def last_reading(url: str, balance: Reconciliation) -> None:
    """Read when all is counted, or will not be. Raises MetricsError if none can be read."""
    deadline = trio.current_time() + SETTLE_SECONDS
    before: Reading | None = None
    while True:
        try:
            balance.add(await read_counts(url))
        except MetricsError:
            if trio.current_time() >= deadline:
                raise
        else:
            settled = balance.last == before and not balance.counted.unaccounted
            if settled or trio.current_time() >= deadline:
                return
            before = balance.last
        await trio.sleep(SETTLE_INTERVAL)


def _read_counts(url: str) -> Reading:
    sums = dict.fromkeys(_COUNTERS.values(), 0)
    process, found = 0.0, False
    try:
        # metrics_url lets http and https through, and nothing else.
        with urllib.request.urlopen(url, timeout=READ_TIMEOUT) as response:  # noqa: S310
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
