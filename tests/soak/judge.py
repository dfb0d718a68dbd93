"""The checks after a soak. They use only the record."""

from collections.abc import Callable, Sequence
from statistics import median

from tests.soak.record import Record, Restarts, Round, quantile
from tests.soak.sampling import Sample

MOST_GROWTH = 0.02
# Fewer samples show no trend.
FEWEST_LOOKS = 10

# Each of these must have happened, or the run has shown little.
EXPECTED = (
    *(f"triojam_rejected_total{{{reason}}}" for reason in ("bad_command", "bad_terminator", "too_long")),
    *(f"triojam_rejected_total{{{reason}}}" for reason in ("timeout", "incomplete")),
    *(f"triojam_response_send_errors_total{{{reason}}}" for reason in ("timeout", "reset")),
    *(
        f"triojam_disconnects_total{{{reason}}}"
        for reason in ("eof", "quit", "idle", "line_timeout", "reset", "handshake")
    ),
    *(f"triojam_disconnects_total{{{reason}}}" for reason in ("send_timeout", "too_long", "error_budget")),
    *(f"triojam_connections_rejected_total{{{reason}}}" for reason in ("denied", "per_source")),
    "triojam_rejected_total{rate_limited}",
    *(f"triojam_web_auth_failures_total{{{reason}}}" for reason in ("wrong", "limited")),
    *(f"triojam_config_reloads_total{{{result}}}" for result in ("success", "failure")),
)


def judge(record: Record, *, prompt: float) -> list[str]:
    """Return the faults, one line each.

    prompt: the limit of the p99 wait of a good client among hostile ones, in seconds.
    """
    faults = [f"an honest client: {what}, {times} times" for what, times in record.honest.failures.items()]
    faults += [f"the server logged: {line}" for line in record.grave]
    if record.status != 0:
        faults.append(f"the server ended with exit status {record.status}")
    faults += _restarts(record.restarts)
    for rest in record.rests:
        faults += _accounts(rest)
    for each in record.rounds:
        faults += _balance(each)
    if (p99 := quantile(record.latencies, 0.99)) > prompt:
        faults.append(f"the p99 wait of a good client was {p99:.3f} s")
    faults += _growth("resident memory", record.warm, "resident")
    faults += _growth("anonymous memory", record.warm, "anonymous")
    faults += _equal("descriptors", record.warm, lambda rest: rest.descriptors)
    faults += _equal("tasks", record.warm, lambda rest: rest.tasks)
    for result, times in record.reloads.items():
        counted = record.last.counts[f"triojam_config_reloads_total{{{result}}}"]
        if counted != times:
            faults.append(f"{counted:g} reloads ended in {result}, expected {times}")
    faults += [f"never happened: {name}" for name in EXPECTED if not record.last.counts.get(name)]
    return faults


def growth(samples: Sequence[Sample], memory: str) -> tuple[float, float]:
    """Return the growth from the median of the first fifth to that of the last fifth, and to the maximum.

    As parts of the first median; memory: the name of the field of Sample.
    """
    values = [float(getattr(sample, memory)) for sample in samples]
    fifth = max(len(values) // 5, 1)
    first = median(values[:fifth])
    return median(values[-fifth:]) / first - 1, max(values) / first - 1


def _growth(what: str, samples: Sequence[Sample], memory: str) -> list[str]:
    if len(samples) < FEWEST_LOOKS:
        return []
    trend, highest = growth(samples, memory)
    faults = [f"{what} grew by {trend:.1%} after the warm-up"] if trend > MOST_GROWTH else []
    if highest > MOST_GROWTH:
        faults.append(f"{what} was {highest:.1%} above its value after the warm-up")
    return faults


def _equal(what: str, samples: Sequence[Sample], of: Callable[[Sample], object]) -> list[str]:
    seen = [of(sample) for sample in samples]
    for value, sample in zip(seen, samples, strict=True):
        if value != seen[0]:
            return [f"{what} at rest were {seen[0]}, and at {sample.seconds:.0f} s {value}"]
    return []


def _accounts(rest: Sample) -> list[str]:
    faults = []
    for what, number in (
        ("requests are unaccounted for", rest.unaccounted),
        ("connections are open without a client", rest.connections),
        ("connections ended without a reason", rest.unended),
        ("internal errors", rest.count("internal_errors")),
        ("accepts failed", rest.count("accept_errors")),
        ("log lines were dropped", rest.count("log_messages_dropped")),
    ):
        if number:
            faults.append(f"at {rest.seconds:.0f} s: {number:g} {what}")
    return faults


def _balance(each: Round) -> list[str]:
    """Compare the counts of honest clients, while they were alone, with those of the server."""
    faults = []
    for what, clients, name in (
        ("sent", each.alone.sent, "requests"),
        ("answered", each.alone.answered, "responses"),
        ("rejected", each.alone.rejected, "rejected"),
    ):
        counted = each.after.count(name) - each.rest.count(name)
        if counted != clients:
            faults.append(
                f"at {each.after.seconds:.0f} s: the clients counted {clients} {what}, the server {counted:g}"
            )
    return faults


def _restarts(restarts: Restarts) -> list[str]:
    """Compare the counts of the clients of the restarted server with the sums of its processes."""
    faults = restarts.faults + [
        f"during restarts: {what}, {times} times" for what, times in restarts.tally.failures.items()
    ]
    if restarts.totals["responses"] != restarts.tally.answered:
        faults.append(
            f"during restarts: the clients counted {restarts.tally.answered} answers, "
            f"the servers {restarts.totals['responses']}"
        )
    return faults
