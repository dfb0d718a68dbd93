"""The words of a result: every figure is true, and labelled for what it is."""

from collections import Counter
from textwrap import dedent
from typing import Any

import pytest

from tests.load.result.results import BAD, MIXED, answers, make
from triojam.load.measure.tally import Tally
from triojam.load.plan import Plan
from triojam.load.result.result import Result
from triojam.load.result.text import render

FULL = make(Plan(rate=20000.0), tally=answers({40: 9000, 60: 900, 120: 90, 2300: 9, 4900: 1}), seconds=0.5)
UNANSWERED = make(
    Plan(rate=1000.0, mix=MIXED, workers=2),
    tally=answers(
        {40: 900, 60: 97},
        rejected=50,
        longer={5_000_000: 2, 4_200_000: 1},
        never_sent=1,
        closed_instead=4,
        late=1,
        latest=0.0023,
    ),
    seconds=5.0,
)
FEW = make(Plan(rate=0.5, seconds=20.0), tally=answers({400: 2}), seconds=4.1, interrupted=True, ran=4.7)
ONLY_BAD_LINES = make(
    Plan(connections=1, requests=1_000_000, mix=BAD),
    tally=answers({400: 2}, rejected=2, unconnected=Counter(refused=3), unasked=Counter({"ERROR busy": 1})),
    seconds=4.1,
    interrupted=True,
    ran=4.7,
    gave_up=True,
)
NOTHING = make(Plan(mix=MIXED), tally=Tally(sent=7, failed=Counter(reset=4, closed=3)), seconds=1.0)
WARMED_UP = make(
    Plan(seconds=8.0, warm_up=2.0, mix=MIXED, rate=10.0, last_rate=12345.6, pipeline=4, visits=True),
    tally=answers({400: 8}, answered=93, rejected=5, warmed_up=90, sent=98),
    seconds=8.0,
)
ONLY_WARM_UP = make(
    Plan(warm_up=2.0), tally=answers({}, answered=95, warmed_up=95, sent=95), seconds=0.0, interrupted=True,
    ran=1.04,
)  # fmt: skip

TEXTS: dict[str, tuple[Result, str]] = {
    "full": (
        FULL,
        """
        a:1, 50 connections, 20,000 requests a second due, 500 ms

        sent             10,000
        answered         10,000  20,000 a second
        failed                0

        latency
          p50         40 µs
          p75         40 µs
          p90         40 µs
          p99         60 µs
          p99.9      120 µs
          p99.99     2.3 ms
          longest    4.9 ms

           4.9 ms |                                                          #
                  |                                                          #
                  |                                                          #
                  |                                                          #
                  |                                                          #
          2.45 ms |                                        ###########       #
                  |                                        ###########       #
                  |                                        ###########       #
                  |                                        ###########       #
                  |###################################################       #
                  +-----------------------------------------------------------
                   0         50        90        99        99.9      99.99 % longest
        """,
    ),
    "unanswered": (
        UNANSWERED,
        """
        a:1, 50 connections, 2 workers, 1,000 requests a second due, 5.0 s

        sent              1,000
        answered            947  189 a second
        rejected             50  10 a second, as they should be; of these, 4 by closing the connection without an ERROR line
        failed                3  no answer in time 3
        never sent            1  due, but no connection became free in time
        sent late             1  by the client, by 1 ms to 2.3 ms; the latencies are without this delay

        latency; 3 of 1,000 requests had no answer, so some values are lower bounds (>)
          p50         40 µs
          p75         40 µs
          p90         40 µs
          p99         60 µs
          p99.9       > 5 s
          longest     > 5 s

              5 s |                                               >>      >
                  |                                             >>>>      >
                  |                                             >>>>      >
                  |                                             >>>>      >
                  |                                             >>>>      >
            2.5 s |                                             >>>>      >
                  |                                             >>>>      >
                  |                                             >>>>      >
                  |                                             >>>>      >
                  |#############################################>>>>      >
                  +--------------------------------------------------------
                   0           50          90          99          99.9 % longest
        """,  # noqa: E501  # a line of the result
    ),
    "few": (
        FEW,
        """
        a:1, 50 connections, 0.5 requests a second due, interrupted after 4.7 of 20 s

        sent                  2
        answered              2  0.488 a second
        failed                0

        latency
          p50        400 µs
          longest    400 µs
        """,
    ),
    "only bad lines": (
        ONLY_BAD_LINES,
        """
        a:1, 1 connection, interrupted after 2 of 1,000,000 requests and 4.1 s

        sent                  2
        rejected              2  0.488 a second, as they should be
        failed                0
        no connection         3  refused 3
        said unasked          1  ERROR busy 1
        Ended early: no connection could be opened any more.

        latency
          p50        400 µs
          longest    400 µs
        """,
    ),
    "nothing": (
        NOTHING,
        """
        a:1, 50 connections, 1.0 s

        sent                  7
        answered              0
        rejected              0
        failed                7  reset 4, closed 3
        """,
    ),
    "warmed up": (
        WARMED_UP,
        """
        a:1, 50 connections, a new one every time, 4 in flight each, 10 to 12,346 requests a second due, 8.0 s after a warm-up of 2 s

        sent                 98
        answered             93  about 0.949 a second
        rejected              5  about 0.051 a second, as they should be
        warmed up            90  of these, in the warm-up: not in rates and latencies
        failed                0

        latency
          p50        400 µs
          p75        400 µs
          longest    400 µs
        """,  # noqa: E501  # a line of the result
    ),
    "only warm up": (
        ONLY_WARM_UP,
        """
        a:1, 50 connections, interrupted after 1.0 of 12 s, with a warm-up of 2 s

        sent                 95
        answered             95
        warmed up            95  of these, in the warm-up: not in rates and latencies
        failed                0

        No latency is known: all answers were in the warm-up.
        """,
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_result_has_these_words(name: str) -> None:
    """Rows, rates, percentiles and chart show what the sample carries, and nothing that says nothing."""
    result, text = TEXTS[name]
    assert render(result, cores=8) == dedent(text).strip()


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(0.5, "0.5"), (3.8462, "3.85"), (99.94, "99.9"), (99.96, "100"), (3854.2, "3,854"), (1e6, "1,000,000")],
)
def test_a_rate_has_three_digits(rate: float, shown: str) -> None:
    """The rates that are due and reached are not rounded to 0 or 1."""
    result = make(Plan(rate=rate), tally=answers({40: 1}), seconds=1 / rate)
    header, _, _, answered, *_ = render(result).splitlines()
    assert f", {shown} requests a second due, " in header
    assert answered.endswith(f"1  {shown} a second")


@pytest.mark.parametrize(
    ("more", "duration"),
    [
        ({"ran": 20.3}, "19.9 s, interrupted at the end"),
        ({"seconds": 0.0123, "interrupted": False}, "12.3 ms"),
        ({"seconds": 0.99951, "interrupted": False}, "1.0 s"),
        ({"ran": 20.3, "plan": Plan(requests=1)}, "19.9 s, interrupted at the end"),
        ({"ran": 5.0, "plan": Plan(requests=9000)}, "interrupted after 1 of 9,000 requests and 19.9 s"),
        (
            {
                "plan": Plan(requests=9, warm_up=1.0),
                "tally": answers({40: 7}, answered=12, sent=12, warmed_up=5),
            },
            "interrupted after 7 of 9 requests and 19.9 s",
        ),
    ],
)
def test_an_interrupted_load_says_how_far_it_came(more: dict[str, Any], duration: str) -> None:
    """After the last request was sent, it was interrupted at the end."""
    given: dict[str, Any] = {"plan": Plan(seconds=20.0), "seconds": 19.9, "interrupted": True} | more
    header = render(make(**given))
    assert header.splitlines()[0] == f"a:1, 50 connections, {duration}"


def test_a_latency_just_below_a_second_has_no_exponent() -> None:
    """It is rounded to four digits rather than to 1e+03."""
    assert "  longest  1,000 ms" in render(make(tally=answers({999_600: 1})))


KEPT_UP = "The client could not keep up: "
FROM_SENDING = "Latencies of late requests count from when they were sent, not from when due."
OPEN = Plan(rate=100.0)
ALONE = Plan(connections=1)


@pytest.mark.parametrize(
    ("plan", "tally", "busy", "notes"),
    [
        (
            OPEN, {"late": 1200, "latest": 0.035, "left_out": 40}, 0.99,
            [
                f"{KEPT_UP}ask for less, or use --workers.",
                "It sent 1,200 requests more than 1 ms late and left out 40 requests; its longest delay was 35 ms.",  # noqa: E501  # a line of the result
                FROM_SENDING,
            ],
        ),
        (
            OPEN, {"late": 11, "latest": 1.5}, 0.5,
            [
                f"{KEPT_UP}ask for less, or use --workers.",
                "It sent 11 requests more than 1 ms late; its longest delay was 1.5 s.",
                FROM_SENDING,
            ],
        ),
        (
            OPEN, {"late": 11, "latest": 0.004}, 0.058,
            [
                "The client was busy only 6 % of the time, but it was delayed: by other programs, or by the machine.",  # noqa: E501  # as above
                "It sent 11 requests more than 1 ms late; its longest delay was 4 ms.",
                FROM_SENDING,
            ],
        ),
        (
            Plan(rate=100.0, workers=4), {"left_out": 1, "latest": 0.004}, 0.5,
            [f"{KEPT_UP}ask for less.", "It left out 1 request; its longest delay was 4 ms."],
        ),
        (OPEN, {"late": 10, "latest": 1.5}, 0.5, []),
        (
            OPEN, {"stood_still": 3.04}, 0.5,
            [
                "The client stood still for up to 3.04 s: it was stopped, or had no processor. Latencies up to this length may be its own time."  # noqa: E501  # a line of the result
            ],
        ),
        (ALONE, {}, 0.949, []),
        (
            ALONE, {}, 0.953,
            ["The client was the limit: it was busy 95 % of the time. The server may do more: use --workers."],  # noqa: E501  # a line of the result
        ),
        (
            Plan(workers=2, think_time=0.1), {}, 1.0,
            [
                "The client was the limit: its busiest process was busy 100 % of the time. The server may do more: use more --workers."  # noqa: E501  # a line of the result
            ],
        ),
        (
            Plan(workers=4, think_time=0.1), {}, 1.0,
            [
                "The client was the limit: its busiest process was busy 100 % of the time. The server may do more."  # noqa: E501  # as above
            ],
        ),
        (ALONE, {"own_seconds": 0.0399}, 0.5, []),
        (
            Plan(), {}, 0.5,
            ["Of 50 connections, 0.04 waited for the server on average, and the others for the client."],
        ),
        (
            Plan(pipeline=4), {}, 0.5,
            ["Of 200 requests, 0.04 waited for the server on average, and the others for the client."],
        ),
        (Plan(), {"failed": Counter(reset=1)}, 0.5, []),
        (Plan(connections=1000), {}, 0.5, []),
        (
            ALONE, {"own_seconds": 0.0881}, 0.5,
            ["The mean latency is 40 µs; up to 9 µs of it may be the client's own time."],
        ),
        (
            ALONE, {"own_seconds": 0.9}, 0.5,
            ["The mean latency is 40 µs; up to 40 µs of it may be the client's own time."],
        ),
    ],
)  # fmt: skip
def test_the_client_names_its_own_part(
    plan: Plan, tally: dict[str, Any], busy: float, notes: list[str]
) -> None:
    """If the client limited the load, or is visible in the latencies, it says so once, with what helps."""
    tally = {"sent": 10_000} | tally
    result = make(plan, tally=answers({40: 10_000}, **tally), busy=busy)
    after_the_chart = render(result, cores=4).rpartition(" % longest")[2]
    assert after_the_chart.splitlines() == (["", "", *notes] if notes else [])


def test_a_client_without_more_cores_does_not_advise_workers() -> None:
    """On a machine with one core, more processes do not help."""
    assert "--workers" not in render(make(busy=1.0), cores=1)
