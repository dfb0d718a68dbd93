"""Counts of a server."""

from collections import Counter

from triojam.core.counters import Counters


def counted(counters: Counters) -> Counter[str]:
    """Return all counters that clients change, by name and label, without zeros."""
    totals = Counter(
        requests=counters.requests,
        responses=counters.responses,
        connections=counters.connections,
        internal_errors=counters.internal_errors,
    )
    totals.update({f"rejected {reason}": times for reason, times in counters.rejected.items()})
    totals.update({f"send error {reason}": times for reason, times in counters.send_errors.items()})
    totals.update({f"disconnect {reason}": times for reason, times in counters.disconnects.items()})
    return +totals
