"""The greatest offset that is allowed, and the plugin for Nagios."""

import pytest

import triojam
from triojam.client.session import Target
from triojam.client.verdicts.threshold import Nearness, nagios, nearness


def answer(offset: float, bound: float) -> triojam.Answer:
    """Make an answer with this offset."""
    return triojam.Answer("12:34:56", offset, bound, 0.001, "192.0.2.1:45000")


@pytest.mark.parametrize(
    ("offset", "bound", "expected"),
    [
        (0.0, 0.2, Nearness.WITHIN),
        (-0.15, 0.05, Nearness.WITHIN),
        (0.15, 0.06, Nearness.UNSURE),
        (-0.25, 0.06, Nearness.UNSURE),
        (0.25, 0.04, Nearness.BEYOND),
        (-3.0, 0.5, Nearness.BEYOND),
    ],
)
def test_an_offset_is_within_beyond_or_unsure(offset: float, bound: float, expected: Nearness) -> None:
    """The whole range is within the limit, or outside of it, or on both sides."""
    assert nearness(answer(offset, bound), 0.2) is expected


GOOD, BAD = answer(0.00004, 0.0002), answer(3.0, 0.0002)


@pytest.mark.parametrize(
    ("outcomes", "limit", "status", "line"),
    [
        (
            [GOOD],
            0.2,
            0,
            (
                "TIME OK - a:45000 +0.04 ms ± 0.20 ms"
                " | offset=0.00004s;;-0.2:0.2 bound=0.0002s;;;0 round_trip=0.001s;;;0"
            ),
        ),
        (
            [answer(0.15, 0.1)],
            0.2,
            1,
            (
                "TIME WARNING - a:45000 +0.15 s ± 0.10 s, perhaps beyond 0.2 s"
                " | offset=0.15s;;-0.2:0.2 bound=0.1s;;;0 round_trip=0.001s;;;0"
            ),
        ),
        (
            [GOOD, BAD],
            0.2,
            2,
            (
                "TIME CRITICAL - b:45000 +3.00000 s ± 0.00020 s, beyond 0.2 s; a:45000 +0.04 ms ± 0.20 ms"
                " | 'a:45000 offset'=0.00004s;;-0.2:0.2 'a:45000 bound'=0.0002s;;;0"
                " 'a:45000 round_trip'=0.001s;;;0 'b:45000 offset'=3s;;-0.2:0.2 'b:45000 bound'=0.0002s;;;0"
                " 'b:45000 round_trip'=0.001s;;;0"
            ),
        ),
        ([triojam.SilentError("said 'a|b'")], 0.2, 2, "TIME CRITICAL - a:45000 said 'a/b'"),
        (
            [BAD],
            None,
            0,
            "TIME OK - a:45000 +3.00000 s ± 0.00020 s | offset=3s bound=0.0002s;;;0 round_trip=0.001s;;;0",
        ),
        ([None], 0.2, 3, "TIME UNKNOWN - a:45000 interrupted"),
    ],
)
def test_the_plugin_prints_one_line_and_a_status(
    outcomes: list[triojam.Answer | triojam.AskError | None], limit: float | None, status: int, line: str
) -> None:
    """The line has the worst server first, and performance data; the status is that of Nagios."""
    targets = [Target(name) for name in "ab"[: len(outcomes)]]
    assert nagios(targets, outcomes, limit) == (status, line)
