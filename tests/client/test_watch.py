"""The table of `watch`: what stays on a narrow terminal."""

from io import StringIO

import pytest
from rich.console import Console

import triojam
from triojam.client.session import Target
from triojam.client.watch import SPARKS, Watched, table


def draw(width: int, *servers: Watched) -> list[str]:
    """Draw the table, and return its lines without the header."""
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(table(servers, width))
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()[1:]]


def watched(host: str, *round_trips: float) -> Watched:
    """Make a server that has answered with these round trips."""
    server = Watched(Target(host))
    for each in round_trips:
        server.add(triojam.Answer("12:34:56", 0.3, 0.5, each, "192.0.2.1:45000"), "12:34:56")
    return server


def test_the_newest_bars_are_shown() -> None:
    """If not all bars fit, the oldest are left out."""
    (line,) = draw(78, watched("localhost", *range(1, 13)))
    assert "…" not in line
    assert line.count(SPARKS[-1]) == 1
    assert SPARKS[0] not in line


def test_the_address_has_the_room_that_is_left() -> None:
    """Without the round trip, there is room for more of the address."""
    (line,) = draw(58, watched("localhost", 0.001))
    assert line.startswith("localhost:45000 12:34:56 +0.30 s ± 0.50 s")


@pytest.mark.parametrize("width", [38, 58, 78, 118])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Long addresses, long reasons and large counts fit, and the counts are whole."""
    bad = Watched(Target("a-very-long-name.example.org"))
    bad.add(triojam.StrangerError("answered with something else: " + "x" * 90), "12:34:56")
    bad.failed = 123_456
    lines = draw(width, watched("2001:db8:1234:5678:1234:5678:1234:5678", 0.001), bad)
    assert max(map(len, lines)) <= width
    assert sum(line.endswith("123,456") for line in lines) == 1
    assert sum("12:34:56" in line for line in lines) == 1
