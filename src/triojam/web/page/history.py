"""The counters over time: a row for each of the last 300 seconds, and the growth in the last ten."""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, Self

from triojam.core.counters import LAG_BUCKETS, REQUEST_BUCKETS
from triojam.core.reasons import AcceptError, Refusal, Rejection, SendError
from triojam.web.metrics import Moment

INTERVAL = 1.0
KEPT_SECONDS = 300
# Quantiles, the success and what is wrong now are about this many seconds.
WINDOW_SECONDS = 10
# After a longer time without a reading, the process stood still: the charts show a gap.
GAP_SECONDS = 3.0


class Reading(NamedTuple):
    """The counters at one moment. at: in seconds, on Trio's clock."""

    at: float
    requests: int
    responses: int
    rejected: Mapping[Rejection, int]
    refused: Mapping[Refusal, int]
    send_errors: Mapping[SendError, int]
    accept_errors: Mapping[AcceptError, int]
    internal_errors: int
    clock_steps: int
    log_messages_dropped: int
    client_table_evictions: int
    connections: int
    durations: Sequence[int]
    lags: Sequence[int]

    @classmethod
    def of(cls, moment: Moment, at: float) -> Self:
        """Copy the counters."""
        c = moment.counters
        return cls(
            at=at,
            requests=c.requests,
            responses=c.responses,
            rejected=c.rejected.copy(),
            refused=c.connections_rejected.copy(),
            send_errors=c.send_errors.copy(),
            accept_errors=c.accept_errors.copy(),
            internal_errors=c.internal_errors,
            clock_steps=c.clock_steps,
            log_messages_dropped=moment.log_messages_dropped,
            client_table_evictions=moment.client_table_evictions,
            connections=c.connections_open,
            durations=c.request_duration.counts.copy(),
            lags=c.loop_lag.counts.copy(),
        )


class Row(NamedTuple):
    """What happened between two readings. All are None for a time in which the process stood still.

    at: of the later reading. requests, responses, rejected, refused, send_errors: per second.
    connections: open at the end. p50, p99: the time to answer; lag: p99 of the event loop's; all in seconds,
    None if there was none. clock_steps: their number.
    """

    at: float
    requests: float | None = None
    responses: float | None = None
    rejected: float | None = None
    refused: float | None = None
    send_errors: float | None = None
    connections: int | None = None
    p50: float | None = None
    p99: float | None = None
    lag: float | None = None
    clock_steps: int | None = None


class History:
    """Readings become rows."""

    def __init__(self, first: Reading) -> None:
        self._readings: deque[Reading] = deque([first], maxlen=WINDOW_SECONDS + 1)
        self._rows: deque[Row] = deque(maxlen=KEPT_SECONDS)

    def add(self, reading: Reading) -> None:
        """Add a reading; it must be later than the one before."""
        before = self._readings[-1]
        if reading.at - before.at > GAP_SECONDS:
            self._rows.append(Row(round(before.at + INTERVAL, 3)))
        self._rows.append(_row(before, reading))
        self._readings.append(reading)

    def since(self, at: float) -> list[Row]:
        """Return the rows after this time."""
        newer = list(takewhile(lambda row: row.at > at, reversed(self._rows)))
        newer.reverse()
        return newer

    def clock_steps(self) -> int:
        """Return how often the clock was set in the time of all rows."""
        return sum(row.clock_steps or 0 for row in self._rows)

    def window(self) -> Reading:
        """Return the growth of each number in the last ten seconds, up to the last reading."""
        return growth(self._readings[0], self._readings[-1])


def growth(before: Reading, now: Reading) -> Reading:
    """Return how much each number of a reading has grown. The time has grown, too."""

    def grown(old: Any, new: Any) -> Any:
        if isinstance(new, Mapping):
            return {key: number - old[key] for key, number in new.items()}
        if isinstance(new, Sequence):
            return [number - less for number, less in zip(new, old, strict=True)]
        return new - old

    return Reading(*(grown(old, new) for old, new in zip(before, now, strict=True)))


def quantile(bounds: Sequence[float], counts: Sequence[int], rank: float) -> float | None:
    """Estimate a quantile in the same way as Prometheus; None if nothing was counted.

    It interpolates within a bucket. Above the last bound it returns that bound. counts: of each bucket.
    """
    left = rank * sum(counts)
    if not left:
        return None
    lower = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and left <= count:
            return float(f"{lower + (bound - lower) * left / count:.3g}")
        left -= count
        lower = bound
    return bounds[-1]


def failures(grown: Reading) -> int:
    """Return how many answers that the server owed were not delivered, as in the recording rules.

    A bad line is not one, or an answer whose client reset the connection first. A client that is refused as
    busy counts as one request.
    """
    lost = sum(grown.send_errors.values()) - grown.send_errors[SendError.RESET]
    return lost + grown.rejected[Rejection.DRAINING] + grown.refused[Refusal.BUSY]


def answer_time(grown: Reading, rank: float) -> float | None:
    """Return a quantile of the time to answer, in seconds."""
    return quantile(REQUEST_BUCKETS, grown.durations, rank)


def lag(grown: Reading) -> float | None:
    """Return p99 of the event loop's lag, in seconds."""
    return quantile(LAG_BUCKETS, grown.lags, 0.99)


def _row(before: Reading, now: Reading) -> Row:
    grown = growth(before, now)

    def rate(number: int) -> float:
        return round(number / max(grown.at, 1e-3), 1)

    return Row(
        at=round(now.at, 3),
        requests=rate(grown.requests),
        responses=rate(grown.responses),
        rejected=rate(sum(grown.rejected.values())),
        refused=rate(sum(grown.refused.values())),
        send_errors=rate(sum(grown.send_errors.values())),
        connections=now.connections,
        p50=answer_time(grown, 0.5),
        p99=answer_time(grown, 0.99),
        lag=lag(grown),
        clock_steps=grown.clock_steps,
    )
