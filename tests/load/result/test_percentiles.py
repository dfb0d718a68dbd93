"""Percentiles, also of requests that had no answer."""

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triojam.load.result.percentiles import Percentiles, needed

WAITS = st.dictionaries(st.integers(0, 50), st.integers(1, 5))


@given(
    answered=WAITS,
    unanswered=WAITS,
    percentile=st.one_of(st.integers(0, 100), st.sampled_from(["99.9", "99.99", "0.1"])),
)
def test_percentiles_agree_with_sorted_lists(
    answered: dict[int, int], unanswered: dict[int, int], percentile: int | str
) -> None:
    """A percentile is exact if it does not depend on the latencies of unanswered requests."""
    percentiles = Percentiles(Counter(answered), Counter(unanswered))
    seen, waited = list(Counter(answered).elements()), list(Counter(unanswered).elements())
    least = sorted(seen + waited)
    most = sorted([*seen, *[math.inf] * len(waited)])
    share = float(percentile)
    assert (percentiles.total, percentiles.unanswered) == (len(least), len(waited))
    if not least:
        assert (percentiles.at(share), percentiles.is_exact(share), percentiles.up_to(share)) == (0, True, 0)
        assert (percentiles.mean, percentiles.deviation) == (0, 0)
        return
    place = max(math.ceil(Fraction(percentile) * len(least) / 100), 1) - 1
    assert percentiles.at(share) == least[place] / 1e6
    assert percentiles.is_exact(share) == (least[place] == most[place])
    assert percentiles.up_to(share) == sum(each <= least[place] for each in least)
    mean = sum(least) / len(least)
    assert percentiles.mean * 1e6 == pytest.approx(mean)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in least) / len(least))
    assert percentiles.deviation * 1e6 == pytest.approx(deviation, abs=1e-6)


def test_a_short_wait_without_an_answer_makes_only_what_it_can_change_a_bound() -> None:
    """A request without an answer for 5 µs may have the longest latency, but not the shortest."""
    percentiles = Percentiles(Counter({1: 1, 2: 1, 8: 1}), Counter({5: 1}))
    found = {each: (percentiles.at(each), percentiles.is_exact(each)) for each in (25, 50, 75, 100)}
    assert found == {25: (1e-6, True), 50: (2e-6, True), 75: (5e-6, False), 100: (8e-6, False)}


@pytest.mark.parametrize(
    ("percentile", "count"),
    [(50, 2), (75, 4), (90, 10), (99, 100), (99.9, 1000), (99.99, 10_000), (99.999, 100_000), (100, 1)],
)
def test_a_sample_carries_a_percentile_with_a_request_beyond(percentile: float, count: int) -> None:
    """Below this number of requests a percentile would only be the longest by another name."""
    assert needed(percentile) == count
    assert Percentiles(Counter({7: count})).carries(percentile)
    assert not Percentiles(Counter({7: count - 1})).carries(percentile)


def test_unanswered_requests_help_to_carry_a_percentile() -> None:
    """Requests without an answer are a part of the sample."""
    assert Percentiles(Counter({7: 99}), Counter({9: 1})).shown == [50, 75, 90, 99]
    assert Percentiles(Counter({7: 1})).shown == []


def test_latencies_are_sorted_once() -> None:
    """Of 200,000 distinct latencies, a percentile costs no look at the latencies themselves."""
    latencies = Counter(range(1, 200_001))
    percentiles = Percentiles(latencies)
    latencies.clear()
    assert [percentiles.at(each / 100) for each in range(1, 10_001)] == [
        each * 20 / 1e6 for each in range(1, 10_001)
    ]
