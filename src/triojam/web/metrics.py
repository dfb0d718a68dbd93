"""Turns the counters into Prometheus samples, at scrape time.

Names follow the Prometheus naming rules. Every series exists from the start, at 0.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping

import trio
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from triojam.core.counters import Counters, Histogram, Label
from triojam.web.kernel_clock import KernelClock


class CountersCollector(Collector):
    """Samples of one server's counters.

    clock: the served time in seconds since the epoch. kernel_clock: the state of the kernel's, or None.
    log_messages_dropped: how many log lines found no room. client_table_evictions: how many sources.
    version: of triojam, for `build_info`.
    """

    def __init__(  # noqa: PLR0913  # a source of samples each
        self,
        counters: Counters,
        *,
        clock: Callable[[], float],
        kernel_clock: Callable[[], KernelClock | None],
        log_messages_dropped: Callable[[], int],
        client_table_evictions: Callable[[], int],
        version: str,
    ) -> None:
        self._counters = counters
        self._clock = clock
        self._kernel_clock = kernel_clock
        self._log_messages_dropped = log_messages_dropped
        self._client_table_evictions = client_table_evictions
        self._version = version

    def describe(self) -> Iterable[Metric]:
        """Return nothing: without this, registering the collector would collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, in the order in which an operator asks."""
        c = self._counters
        yield _counter("requests", "Requests decided on, whatever the decision.", c.requests)
        yield _counter("responses", "JAM answers that the kernel took whole.", c.responses)
        yield _counters("rejected", "Requests refused, by reason.", "reason", c.rejected)
        yield _counters(
            "response_send_errors",
            "Times that were due and could not be delivered, by reason.",
            "reason",
            c.send_errors,
        )
        yield _counter("connections", "Connections accepted, refused ones included.", c.connections)
        yield _counters(
            "connections_rejected",
            "Connections refused before any request, by reason.",
            "reason",
            c.connections_rejected,
        )
        yield _counters("disconnects", "Ends of admitted connections, by reason.", "reason", c.disconnects)
        # Not plain `connections`: in OpenMetrics that is the family of `connections_total` already.
        yield _gauge("connections_open", "Connections open now.", c.connections_open)
        yield _gauge("connections_limit", "Most connections open at once.", c.connections_limit)
        yield _histogram(
            "request_duration_seconds",
            "From the whole line in hand to its JAM taken by the kernel; in the fast lane, of the batch.",
            c.request_duration,
        )
        yield _histogram(
            "request_receive_seconds",
            "From the first byte of a line to its LF, of lines that came in pieces.",
            c.request_receive,
        )
        yield _counters(
            "lane_handovers",
            "Clients handed over by the fast lane to a task of their own, by cause.",
            "cause",
            c.handovers,
        )
        yield _counters("accept_errors", "Failed accepts, by errno.", "errno", c.accept_errors)
        yield _counter("internal_errors", "Exceptions contained to one connection.", c.internal_errors)
        yield _histogram(
            "event_loop_lag_seconds", "How late the scheduler woke a sleeping probe.", c.loop_lag
        )
        yield _gauge("clock_seconds", "The clock that answers are made from, since the epoch.", self._clock())
        yield _counter(
            "clock_steps",
            "Moves of the wall clock against the monotonic one by more than half a second.",
            c.clock_steps,
        )
        if (kernel := self._kernel_clock()) is not None:
            yield _gauge(
                "clock_synchronized",
                "1 if the kernel says that its clock is kept right.",
                kernel.synchronized,
            )
            yield _gauge(
                "clock_max_error_seconds", "The kernel's bound on its clock's error.", kernel.max_error
            )
            yield _gauge("clock_offset_seconds", "What the kernel has yet to slew away.", kernel.offset)
            yield _gauge(
                "leap_state",
                "Leap second: 0 none, 1 to be inserted, 2 deleted, 3 now, 4 over.",
                kernel.leap_state,
            )
        yield _gauge("ready", "1 while new clients are welcome.", c.ready)
        yield _gauge("draining", "1 from the signal to stop until the end.", c.draining)
        yield _counters("config_reloads", "Reloads of the settings, by result.", "result", c.config_reloads)
        yield _counter(
            "log_messages_dropped",
            "Log lines lost because their reader had stalled.",
            self._log_messages_dropped(),
        )
        yield _counters(
            "web_auth_failures",
            "Requests that the web listener did not let through, by reason.",
            "reason",
            c.auth_failures,
        )
        yield _counter(
            "client_table_evictions",
            "Sources forgotten because the table of them was full.",
            self._client_table_evictions(),
        )
        build_info = GaugeMetricFamily(
            "triojam_build_info", "What is running; always 1.", labels=["version", "python", "trio"]
        )
        build_info.add_metric([self._version, platform.python_version(), trio.__version__], 1)
        yield build_info


def make_registry(collector: Collector) -> CollectorRegistry:
    """Build a registry of its own with `collector` and the client library's process collectors."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"triojam_{name}", text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[Label, int]) -> Metric:
    family = CounterMetricFamily(f"triojam_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"triojam_{name}", text, value=float(value))


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    buckets = []
    total = 0
    for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(f"triojam_{name}", text, buckets=buckets, sum_value=histogram.sum)
