"""Histograms, and the identity of the counters."""

from hypothesis import given
from hypothesis import strategies as st

from triojam.core.counters import Counters, Histogram
from triojam.core.reasons import Rejection, SendError


@given(values=st.lists(st.floats(0, 10), max_size=50))
def test_a_bucket_counts_observations_up_to_its_bound(values: list[float]) -> None:
    """The cumulated buckets count observations up to and including the bound, as Prometheus defines it."""
    histogram = Histogram([0.5, 1.0, 5.0])
    for value in values:
        histogram.observe(value)
    for index, bound in enumerate(histogram.bounds):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)
    assert histogram.count == len(values)


def test_every_request_is_a_response_rejected_or_a_send_error() -> None:
    """A request is unaccounted until it is a response, rejected, or a send error."""
    counters = Counters()
    counters.requests = 3
    assert counters.unaccounted == 3
    counters.responses += 1
    counters.rejected[Rejection.TIMEOUT] += 1
    counters.send_errors[SendError.RESET] += 1
    assert counters.unaccounted == 0
