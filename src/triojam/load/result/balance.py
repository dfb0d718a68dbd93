"""The balance of a load with the counters of its servers, as text for people and as data for programs."""

from dataclasses import asdict
from typing import Any

from triojam.load.reconcile import Reconciliation, numbered
from triojam.load.result.result import Result

_MISSING = {
    "refused": "not counted: the {name} refused their connections",
    "not_counted": "not counted: the {name} did not read them",
    "answered_wrong": "answered, but not with the right answer",
    "answer_not_received": "answered, but the client did not receive the answer",
    "rejected_with_error": "rejected with an ERROR line",
    "rejected_without_error": "rejected, but the client received no ERROR line",
    "send_errors": "answered, but the {name} could not send the answer",
}


def lines(result: Result) -> list[str]:
    """Render the balance; without any readings, nothing."""
    reconciliation = result.reconciliation
    if reconciliation is None:
        return []
    if result.unread is not None:
        return [f"The balance is open: {result.unread}"]
    table = _table(result, reconciliation)
    if faults := result.faults:
        return [*table, *faults, "The balance does not close."]
    tally, missing = result.tally, reconciliation.missing(result.tally)
    if not reconciliation.restarts:
        return [*table, *_failed(missing, reconciliation.name), "The balance closes."]
    which = "The server was" if reconciliation.servers == 1 else "Servers were"
    times = "once" if reconciliation.restarts == 1 else f"{reconciliation.restarts} times"
    lost, in_flight = reconciliation.lost(tally), reconciliation.counted.unaccounted
    if not lost and not in_flight:
        known = f"{which} restarted {times}; each request is in a reading of the counters."
        return [*table, known, *_failed(missing, reconciliation.name), "The balance closes."]
    ends = []
    if lost:
        be = "is" if lost == 1 else "are"
        ends.append(f"{numbered(lost, 'request')} {be} in no reading of the counters")
    if in_flight:
        be = "was" if in_flight == 1 else "were"
        ends.append(f"{numbered(in_flight, 'request')} {be} in flight at the last reading of a process")
    return [
        *table,
        f"{which} restarted {times}: {', '.join(ends)}.",
        "They were lost, or counted after the last reading; all other requests balance.",
    ]


def as_json(result: Result) -> dict[str, Any]:
    """Return the part of the result for programs that is about the servers' counters.

    missing: where the failed requests are in the counters; None if that is not known.
    """
    reconciliation = result.reconciliation
    if reconciliation is None:
        return {}
    known = not (result.faults or reconciliation.lost(result.tally) or reconciliation.counted.unaccounted)
    return {
        "server_counted": asdict(reconciliation.counted) | {"restarts": reconciliation.restarts},
        "balance_faults": result.faults,
        "missing": reconciliation.missing(result.tally) if known else None,
    }


def _table(result: Result, reconciliation: Reconciliation) -> list[str]:
    tally, counted = result.tally, reconciliation.counted
    headings = ("sent", "answered", "rejected", "send errors", "reset", "failed else")
    resets = sum(number for cause, number in tally.failed.items() if cause.startswith("reset"))
    ours = (tally.sent, tally.answered, tally.rejected, None, resets, tally.failed.total() - resets)
    theirs = (counted.requests, counted.responses, counted.rejected, counted.send_errors, None, None)
    rows = [
        ("balance", *headings),
        ("client", *map(_number, ours)),
        (reconciliation.name, *map(_number, theirs)),
    ]
    return [f"{name:8}" + "".join(f"  {cell:>12}" for cell in cells).rstrip() for name, *cells in rows]


def _failed(missing: dict[str, int], name: str) -> list[str]:
    """Say where the failed requests are in the counters."""
    rows = [
        f"{missing[key]:>13,}  {words.format(name=name)}" for key, words in _MISSING.items() if missing[key]
    ]
    if rows:
        rows.insert(0, "The failed requests in the counters:")
    if closed := missing["only_closed"]:
        are = f"{closed:,} is" if closed == 1 else f"{closed:,} are"
        rows.append(
            f"Of the rejected ones, {are} not in the counters: closed by the {name}, but not rejected by it."
        )
    return rows


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
