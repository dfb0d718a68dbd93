"""What is seen of a server from outside: its memory, descriptors and tasks, and its own accounts."""

import json
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

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
    """One look at a server.

    seconds: since the beginning. resident, anonymous: memory in KiB, with and without what is mapped from
    files. tasks: how many of each name. cpu: seconds of CPU time since its start. lags: of its event loop,
    how many were no longer than so many seconds.
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
        """How many tasks there are."""
        return sum(self.tasks.values())

    @property
    def unaccounted(self) -> float:
        """Requests of which nothing has become yet."""
        return (
            self.count("requests")
            - self.count("responses")
            - self.count("rejected")
            - self.count("response_send_errors")
        )

    @property
    def unended(self) -> float:
        """Connections that were let in, and for whose end there is no reason yet."""
        return self.count("connections") - self.count("connections_rejected") - self.count("disconnects")


async def look(pid: int, web: Address, seconds: float) -> Sample:
    """Take a sample, in which nobody else's connection to the web listener is to be seen because of it."""
    descriptors, memory = _descriptors(pid), _memory(pid)
    status = json.loads((await _fetch(web, "/status")).body)
    page = (await _fetch(web, "/metrics")).text
    seen = Scrape([sample for family in text_string_to_metric_families(page) for sample in family.samples])
    tasks: Counter[str] = Counter()
    _count_tasks(status["tasks"], tasks)
    return Sample(
        seconds=seconds,
        resident=memory["Rss"],
        anonymous=memory["Anonymous"],
        descriptors=descriptors,
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


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _memory(pid: int) -> dict[str, int]:
    """Return the fields of smaps_rollup (proc(5)), in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
    return {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}


def _count_tasks(branch: dict[str, Any], tasks: Counter[str]) -> None:
    tasks[branch["name"]] += branch["times"]
    for nursery in branch["nurseries"]:
        for inner in nursery:
            _count_tasks(inner, tasks)
