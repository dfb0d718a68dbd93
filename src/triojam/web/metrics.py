"""Turns the counters into Prometheus samples, at scrape time.

Names follow the Prometheus naming rules. Every series exists from the start, at 0. A gauge whose value is not
known has no series, because 0 would be a value.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import trio
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from triojam.core.counters import Counters, Histogram
from triojam.core.reasons import Listener
from triojam.web.kernel_clock import KernelClock

Value = float | Mapping[Any, float] | Histogram


class Moment(NamedTuple):
    """What one scrape reads.

    clock: the served time, in seconds since the epoch. certificate_ends: when the certificate of each
    listener that uses TLS ends, in the same way.
    """

    counters: Counters
    clock: float
    kernel: KernelClock | None
    log_messages_dropped: int
    client_table_evictions: int
    certificate_ends: Mapping[Listener, float]


class Row(NamedTuple):
    """One metric. label: the name of its label, or "". read: returns its value, or None to leave it out."""

    name: str
    kind: Callable[..., Any]
    label: str
    read: Callable[[Moment], Value | None]
    help: str


COUNTER, GAUGE, HISTOGRAM = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
TABLE = (
    Row("requests", COUNTER, "", lambda m: m.counters.requests,
        "Requests with a decision: answered, rejected or lost while sending."),
    Row("responses", COUNTER, "", lambda m: m.counters.responses,
        "JAM answers that the kernel accepted completely."),
    Row("rejected", COUNTER, "reason", lambda m: m.counters.rejected,
        "Rejected requests, by reason."),
    Row("response_send_errors", COUNTER, "reason", lambda m: m.counters.send_errors,
        "JAM answers that could not be delivered, by reason."),
    Row("connections", COUNTER, "", lambda m: m.counters.connections,
        "Accepted connections, including refused ones."),
    Row("connections_rejected", COUNTER, "reason", lambda m: m.counters.connections_rejected,
        "Connections refused before any request, by reason."),
    Row("disconnects", COUNTER, "reason", lambda m: m.counters.disconnects,
        "Ends of admitted connections, by reason."),
    # Not plain `connections`: in OpenMetrics that is the family of `connections_total` already.
    Row("connections_open", GAUGE, "", lambda m: m.counters.connections_open,
        "Open connections."),
    Row("connections_limit", GAUGE, "", lambda m: m.counters.connections_limit,
        "Maximum number of open connections."),
    Row("request_duration_seconds", HISTOGRAM, "", lambda m: m.counters.request_duration,
        "Time from the complete request line to its JAM answer in the kernel; in the fast lane, per batch."),
    Row("request_receive_seconds", HISTOGRAM, "", lambda m: m.counters.request_receive,
        "Time from the first byte of a line to its LF, for lines that came in pieces."),
    Row("lane_handovers", COUNTER, "cause", lambda m: m.counters.handovers,
        "Clients that the fast lane handed over to their own task, by cause."),
    Row("accept_errors", COUNTER, "errno", lambda m: m.counters.accept_errors,
        "Failed accepts, by errno."),
    Row("internal_errors", COUNTER, "", lambda m: m.counters.internal_errors,
        "Unexpected exceptions; each ended one connection."),
    Row("event_loop_lag_seconds", HISTOGRAM, "", lambda m: m.counters.loop_lag,
        "Delay of the event loop: how late a sleeping probe woke up."),
    Row("clock_seconds", GAUGE, "", lambda m: m.clock,
        "The served time, in seconds since the epoch."),
    Row("clock_steps", COUNTER, "", lambda m: m.counters.clock_steps,
        "Jumps of the wall clock by more than half a second."),
    Row("clock_synchronized", GAUGE, "", lambda m: m.kernel and m.kernel.synchronized,
        "1 if the kernel says that its clock is synchronized."),
    Row("clock_max_error_seconds", GAUGE, "", lambda m: m.kernel and m.kernel.max_error,
        "Largest possible error of the kernel's clock, as the kernel reports it."),
    Row("clock_offset_seconds", GAUGE, "", lambda m: m.kernel and m.kernel.offset,
        "Correction of the clock that the kernel has not yet made."),
    Row("leap_state", GAUGE, "", lambda m: m.kernel and m.kernel.leap_state,
        "Leap second: 0 none, 1 will be inserted, 2 will be deleted, 3 in progress, 4 over."),
    Row("ready", GAUGE, "", lambda m: m.counters.ready,
        "1 while the server accepts new clients."),
    Row("draining", GAUGE, "", lambda m: m.counters.draining,
        "1 from the stop signal until the end."),
    Row("config_reloads", COUNTER, "result", lambda m: m.counters.config_reloads,
        "Reloads of the settings, by result."),
    Row("self_checks", COUNTER, "result", lambda m: m.counters.self_checks,
        "Checks in which the server asks itself for the time, by result; no other metric counts them."),
    Row("log_messages_dropped", COUNTER, "", lambda m: m.log_messages_dropped,
        "Log lines dropped because the reader of the log was too slow."),
    Row("web_auth_failures", COUNTER, "reason", lambda m: m.counters.auth_failures,
        "Requests to the metrics listener refused for their password, by reason."),
    Row("web_rejected", COUNTER, "reason", lambda m: m.counters.web_rejected,
        "Connections and requests that the metrics port turned away, by reason."),
    Row("client_table_evictions", COUNTER, "", lambda m: m.client_table_evictions,
        "Sources forgotten because the table of sources was full."),
    Row("tls_certificate_not_after_seconds", GAUGE, "listener", lambda m: m.certificate_ends or None,
        "When the certificate of a TLS listener ends, or an earlier one of its chain, since the epoch."),
)  # fmt: skip


@dataclass(eq=False)
class CountersCollector(Collector):
    """Samples of one server's counters.

    clock: the served time in seconds since the epoch. kernel_clock: the state of the kernel's, or None.
    log_messages_dropped, client_table_evictions: how many log lines and sources were dropped so far.
    certificate_ends: see Moment. version: of triojam, for `build_info`.
    """

    counters: Counters
    _: KW_ONLY
    clock: Callable[[], float]
    kernel_clock: Callable[[], KernelClock | None]
    log_messages_dropped: Callable[[], int]
    client_table_evictions: Callable[[], int]
    certificate_ends: Callable[[], Mapping[Listener, float]]
    version: str

    def __post_init__(self) -> None:
        # Made once; a scrape replaces their samples. Making them anew would cost a tenth of a scrape.
        self._families = [
            row.kind(f"triojam_{row.name}", row.help, labels=[row.label] if row.label else [])
            for row in TABLE
        ]
        self._build_info = GaugeMetricFamily(
            "triojam_build_info",
            "Running versions; the value is always 1.",
            labels=["version", "python", "trio"],
        )
        self._build_info.add_metric([self.version, platform.python_version(), trio.__version__], 1)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: without this, registering the collector would collect."""
        return []

    def read(self) -> Moment:
        """Read everything that a scrape or the live page shows."""
        return Moment(
            self.counters,
            self.clock(),
            self.kernel_clock(),
            self.log_messages_dropped(),
            self.client_table_evictions(),
            self.certificate_ends(),
        )

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, in the order of the table."""
        moment = self.read()
        for row, family in zip(TABLE, self._families, strict=True):
            if (value := row.read(moment)) is not None:
                family.samples = []
                _add(family, value)
                yield family
        yield self._build_info


def make_registry(collector: Collector) -> CollectorRegistry:
    """Build a registry of its own with `collector` and the client library's process collectors."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _add(family: Any, value: Value) -> None:
    """Add the samples of a value."""
    if isinstance(value, Histogram):
        counts = accumulate(value.counts)
        family.add_metric([], list(zip(_bound_names(value.bounds), counts, strict=True)), value.sum)
    elif isinstance(value, Mapping):
        for key, number in value.items():
            family.add_metric([str(key)], number)
    else:
        family.add_metric([], value)


@cache
def _bound_names(bounds: tuple[float, ...]) -> list[str]:
    return [*map(str, bounds), "+Inf"]
