"""The result for programs: JSON, CSV, and the file for the plotters of HdrHistogram."""

import json
import re
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.result.results import answers, make, timeline
from triojam.load.plan import Plan
from triojam.load.result.exports import as_csv, as_hgrm, as_json
from triojam.load.result.result import Moment

# What the plotters read as a row: four numbers, the last of which is finite.
ROW = re.compile(r"\s+([0-9.]+)\s+([0-9.]+)\s+([0-9.]+)\s+([0-9.]+)")


def test_json_has_the_percentiles_that_the_sample_carries() -> None:
    """All latencies are numbers; those that are lower bounds are listed."""
    longer = {5_000_000: 2}
    data = json.loads(as_json(make(tally=answers({40: 900, 60: 98}, longer=longer, warmed_up=8))))
    assert data["latency"] == {
        "p50": 40e-6, "p75": 40e-6, "p90": 40e-6, "p99": 60e-6, "p99.9": 5.0, "p100": 5.0
    }  # fmt: skip
    assert data["latency_lower_bounds"] == ["p99.9", "p100"]
    assert (data["latency_requests"], data["latency_unanswered"]) == (1000, 2)
    assert data["rate"] == 99


def test_json_tells_apart_what_the_server_and_the_client_missed() -> None:
    """Each total of the tally has a key of its own."""
    tally = answers(
        {40: 10}, rejected=2, closed_instead=1, warmed_up=3, never_sent=4, left_out=5, late=6, latest=0.7,
        own_seconds=8.0, opened=9,
    )  # fmt: skip
    data = json.loads(
        as_json(make(Plan(rate=5.0), tally=tally, timeline=timeline((0.0, 0, 0), (1.0, 10, 0))))
    )
    assert data == {
        "server": "a:1", "seconds": 10.0, "interrupted": False, "sent": 10, "answered": 8, "rejected": 2,
        "closed_instead": 1, "warmed_up": 3, "failed": {}, "unconnected": {}, "unasked": {}, "never_sent": 4,
        "gave_up": False, "connections_opened": 9, "rate": 0.7,
        "latency": {"p50": 40e-6, "p75": 40e-6, "p90": 40e-6, "p100": 40e-6},
        "latency_lower_bounds": [], "latency_requests": 10, "latency_unanswered": 0,
        "client_cpu": 0.3, "client_was_the_limit": True, "client_seconds_per_answer": 0.8,
        "requests_at_server": 4e-05,
        "client_left_out": 5, "client_late": 6, "client_latest": 0.7,
        "timeline": [
            {"seconds": 0.0, "settled": 0, "failed": 0, "p50": None, "p99": None, "longest": None},
            {"seconds": 1.0, "settled": 10, "failed": 0, "p50": 40e-6, "p99": 0.0011, "longest": 0.5}
        ],
    }  # fmt: skip


def test_json_without_an_answer_has_no_latency() -> None:
    """A latency of 0 would be wrong."""
    data = json.loads(as_json(make(tally=answers({}))))
    assert (data["latency"], data["latency_lower_bounds"], data["rate"]) == ({}, [], 0)


def test_csv_has_a_row_for_each_part() -> None:
    """Rates and failures are those of the part; without an answer, a part has no latencies."""
    moments = timeline((0.0, 0, 0), (0.5, 5, 0), (1.0, 5, 3), (1.75, 20, 4))
    assert as_csv(make(Plan(rate=10.0, last_rate=30.0, seconds=1.0), timeline=moments)) == dedent("""\
        seconds,rate_due,answered_per_second,failed,p50_ms,p99_ms,longest_ms
        0.500,15.00,10.00,0,0.040,1.100,500.000
        1.000,25.00,0.00,3,,,
        1.750,0.00,20.00,1,0.040,1.100,500.000
        """)
    warm_up = [Moment(0.5, 5, 0), *moments[2:]]
    assert as_csv(make(timeline=warm_up)).splitlines()[1] == "0.500,,10.00,0,,,"
    assert as_csv(make(timeline=moments)).splitlines()[1] == "0.500,,10.00,0,0.040,1.100,500.000"


def test_hgrm_is_the_percentile_distribution_of_hdrhistogram() -> None:
    """Four columns, the distance to 100 % halved in five steps, and a foot of three lines."""
    assert as_hgrm(make(tally=answers({1000: 1, 2000: 9, 4000: 1}))) == (
        "       Value   Percentile   TotalCount 1/(1-Percentile)\n"
        "\n"
        "       1.000     0.000000            1         1.00\n"
        "       2.000     0.100000           10         1.11\n"
        "       2.000     0.200000           10         1.25\n"
        "       2.000     0.300000           10         1.43\n"
        "       2.000     0.400000           10         1.67\n"
        "       2.000     0.500000           10         2.00\n"
        "       2.000     0.550000           10         2.22\n"
        "       2.000     0.600000           10         2.50\n"
        "       2.000     0.650000           10         2.86\n"
        "       2.000     0.700000           10         3.33\n"
        "       2.000     0.750000           10         4.00\n"
        "       2.000     0.775000           10         4.44\n"
        "       2.000     0.800000           10         5.00\n"
        "       2.000     0.825000           10         5.71\n"
        "       2.000     0.850000           10         6.67\n"
        "       2.000     0.875000           10         8.00\n"
        "       2.000     0.887500           10         8.89\n"
        "       2.000     0.900000           10        10.00\n"
        "       4.000     0.912500           11        11.43\n"
        "       4.000     1.000000           11          inf\n"
        "#[Mean    =        2.091, StdDeviation   =        0.668]\n"
        "#[Max     =        4.000, Total count    =           11]\n"
        "#[Buckets =            1, SubBuckets     =            3]\n"
    )


def test_hgrm_names_lower_bounds_in_comments() -> None:
    """The format itself cannot mark a value; plotters skip a comment."""
    text = as_hgrm(make(tally=answers({1000: 8}, longer={5_000_000: 2})))
    assert text.splitlines()[-2:] == [
        "# 2 of these requests had no answer: their time without one counts.",
        "# From the percentile 0.825000 on, values may be lower bounds.",
    ]


def test_hgrm_of_nothing_has_no_rows() -> None:
    """A load without an answer has a head and a foot."""
    lines = as_hgrm(make(tally=answers({}))).splitlines()
    assert len(lines) == 5
    assert lines[3] == "#[Max     =        0.000, Total count    =            0]"


@given(st.dictionaries(st.integers(0, 10_000_000), st.integers(1, 10**9), min_size=1))
def test_hgrm_rows_rise_to_the_longest(latencies: dict[int, int]) -> None:
    """For any sample, plotters read rows whose values and counts rise, and which end with all requests."""
    lines = as_hgrm(make(tally=answers(latencies))).splitlines()
    rows = [match for line in lines if (match := ROW.match(line))]
    values, shares, counts, beyond = ([float(row[column]) for row in rows] for column in range(1, 5))
    for column in (values, shares, counts, beyond):
        assert column == sorted(column)
    assert values[-1] == pytest.approx(max(latencies) / 1e3)
    assert counts[-1] == sum(latencies.values())
    assert lines[len(rows) + 2].split() == [f"{values[-1]:.3f}", "1.000000", f"{counts[-1]:.0f}", "inf"]
