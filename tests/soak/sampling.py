"""A sample of a server from outside: its memory, descriptors, tasks and counters."""

import json
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.program import descriptors, memory
from tests.helpers.scrape import Address, Reply, Scrape, fetch

USER, PASSWORD = "soak", "rather secret"
AUTHORIZATION = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()

COUNTED = (
    "triojam_requests_total",
    "triojam_responses_total",
    "triojam_rejected_total",
    "triojam_response_send_errors_total",
    "triojam_connections_total",
    "triojam_connections_rejected_total",
    "triojam_disconnects_total",
    "triojam_accept_errors_total",
    "triojam_internal_errors_total",
    "triojam_log_messages_dropped_total",
    "triojam_config_reloads_total",
    "triojam_web_auth_failures_total",
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a server.

    seconds: since the beginning. resident, anonymous: memory in KiB, with and without mapped files.
    tasks: their number by name. cpu: seconds of CPU time since its start.
    lags: the histogram of its event loop lag.
    """

    seconds: float
    resident: int
    anonymous: int
    descriptors: int
    tasks: dict[str, int]
    connections: int
    cpu: float
    counts: dict[str, float]
    lags: dict[str, float]

    def count(self, name: str) -> float:
        """Return a counter, summed over its label."""
        return sum(
            value for key, value in self.counts.items() if key.partition("{")[0] == f"triojam_{name}_total"
        )

    @property
    def running(self) -> int:
        """The number of tasks."""
        return sum(self.tasks.values())

    @property
    def unaccounted(self) -> float:
        """The number of requests without a result yet."""
        return (
            self.count("requests")
            - self.count("responses")
            - self.count("rejected")
            - self.count("response_send_errors")
        )

    @property
    def unended(self) -> float:
        """The number of accepted connections without a reason for their end yet."""
        return self.count("connections") - self.count("connections_rejected") - self.count("disconnects")


async def look(pid: int, web: Address, seconds: float) -> Sample:
    """Take a sample."""
    used, opened = memory(pid), len(descriptors(pid))  # before the scrape opens a connection
    status = json.loads((await _fetch(web, "/status")).body)
    page = (await _fetch(web, "/metrics")).text
    seen = Scrape([sample for family in text_string_to_metric_families(page) for sample in family.samples])
    tasks: Counter[str] = Counter()
    _count_tasks(status["tasks"], tasks)
    return Sample(
        seconds=seconds,
        resident=used["Rss"],
        anonymous=used["Anonymous"],
        descriptors=opened,
        tasks=dict(sorted(tasks.items())),
        connections=int(seen.total("triojam_connections_open")),
        cpu=seen.total("process_cpu_seconds_total"),
        counts=_counts(seen),
        lags={
            sample.labels["le"]: sample.value
            for sample in seen.samples
            if sample.name == "triojam_event_loop_lag_seconds_bucket"
        },
    )


async def _fetch(web: Address, path: str) -> Reply:
    reply = await fetch(web, path, headers=MappingProxyType({"Authorization": AUTHORIZATION}))
    assert reply.status == HTTPStatus.OK
    return reply


def _counts(seen: Scrape) -> dict[str, float]:
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for sample in seen.samples
        if sample.name in COUNTED
    }


def _count_tasks(branch: dict[str, Any], tasks: Counter[str]) -> None:
    tasks[branch["name"]] += branch["times"]
    for nursery in branch["nurseries"]:
        for inner in nursery["tasks"]:
            _count_tasks(inner, tasks)
