"""The figures of a soak, as JSON and as a Markdown table."""

import json
from pathlib import Path
from typing import Any

from tests.soak.clients import Tally
from tests.soak.judge import growth
from tests.soak.record import Record, quantile

MIB = 1024
PARTS = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "longest": 1.0}


def figures(record: Record, faults: list[str]) -> dict[str, Any]:
    """Return the figures of a run, ready for JSON. Memory is in KiB, time in seconds."""
    warm, latencies = record.warm, record.latencies
    return {
        "faults": faults,
        "seconds": record.seconds,
        "rests": len(record.rests),
        "rests_judged": len(warm),
        "honest": _tally(record.honest),
        "counts": record.last.counts,
        "unaccounted": max(rest.unaccounted for rest in record.rests),
        "memory": {
            which: {
                "first": getattr(warm[0], which),
                "last": getattr(warm[-1], which),
                **dict(zip(("trend", "highest"), growth(warm, which), strict=True)),
            }
            for which in ("resident", "anonymous")
        },
        "descriptors": sorted({rest.descriptors for rest in warm}),
        "tasks": sorted({rest.running for rest in warm}),
        "most_connections": max((sample.connections for sample in record.samples), default=0),
        "latency": {name: quantile(latencies, part) for name, part in PARTS.items()},
        "latencies": len(latencies),
        "loop_lag_p99_below": _bound(record.last.lags, 0.99),
        "cpu": record.last.cpu,
        "reloads": record.reloads,
        "restarts": {
            "clients": _tally(record.restarts.tally),
            "servers": dict(record.restarts.totals),
            "times": len(record.restarts.moments),
            "sent_again": record.restarts.sent_again,
        },
        "looks": [
            (look.seconds, look.resident, look.anonymous, look.descriptors, look.running, look.connections)
            for look in record.looks
        ],
    }


def markdown(record: Record, found: dict[str, Any]) -> str:
    """Return the figures as a table."""
    last, latency, restarts, honest = record.last, found["latency"], record.restarts, record.honest

    def memory(which: str) -> str:
        seen = found["memory"][which]
        first, final = seen["first"] / MIB, seen["last"] / MIB
        return (
            f"{first:.1f} MiB, at the end {final:.1f} MiB; "
            f"trend {seen['trend']:+.2%}, at most {seen['highest']:+.2%}"
        )

    rows = {
        "length": f"{record.seconds / 60:g} minutes; {len(record.rests)} rests, "
        f"{len(record.warm)} of them after the warm-up",
        "connections": f"{last.count('connections'):,.0f}; {found['most_connections']} seen at once",
        "connections refused": f"{last.count('connections_rejected'):,.0f}",
        "requests": f"{last.count('requests'):,.0f}",
        "answered": f"{last.count('responses'):,.0f}",
        "rejected": f"{last.count('rejected'):,.0f}",
        "not delivered": f"{last.count('response_send_errors'):,.0f}",
        "unaccounted, at any rest": f"{found['unaccounted']:g}",
        "requests of honest clients": f"{honest.sent:,}; without the right answer: {honest.failures.total()}",
        "resident memory at rest": memory("resident"),
        "anonymous memory at rest": memory("anonymous"),
        "file descriptors at rest": ", ".join(map(str, found["descriptors"])),
        "tasks at rest": ", ".join(map(str, found["tasks"])),
        "a good client's answers": f"{found['latencies']:,}; p50 {latency['p50'] * 1e3:.2f} ms, "
        f"p99 {latency['p99'] * 1e3:.2f} ms, longest {latency['longest'] * 1e3:.1f} ms",
        "loop lag": f"99 % below {found['loop_lag_p99_below'] * 1e3:g} ms",
        "CPU time": f"{last.cpu:.0f} s",
        "reloads": f"{record.reloads.get('success', 0)} good ones, each with a new certificate; "
        f"{record.reloads.get('failure', 0)} bad ones",
        "restarts of the other server": f"{len(restarts.moments)}; {restarts.tally.answered:,} answered, "
        f"{restarts.tally.failures.total()} lost, {restarts.sent_again} sent again; "
        f"the longest wait {restarts.tally.longest:.1f} s",
    }
    return "\n".join(["| | |", "|:--|:--|", *(f"| {name} | {value} |" for name, value in rows.items())])


def write(folder: Path, found: dict[str, Any], table: str) -> None:
    """Write figures.json and figures.md."""
    (folder / "figures.json").write_text(json.dumps(found) + "\n", "utf-8")
    (folder / "figures.md").write_text(table + "\n", "utf-8")


def _tally(tally: Tally) -> dict[str, Any]:
    return vars(tally) | {"failures": dict(tally.failures)}


def _bound(lags: dict[str, float], part: float) -> float:
    """Return the bound in seconds that this part of the lags did not exceed."""
    return next(float(bound) for bound, count in lags.items() if count >= lags["+Inf"] * part)
