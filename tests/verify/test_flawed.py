"""Servers with one mistake each: each fails exactly the rules that it must, and holds all others."""

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.verify.judging import BASIC, COMMAND, FLAWED, judge_files, named, path
from triojam.verify.judge import Verdict

HOSTILE = {"resets", "bad-flood", "endless-line", "never-reads"}
NEEDS_ANSWER = {rule.name for rule in BASIC} - {"port", "answer"}

# Each server: the rules that fail, and the rules that cannot be tried.
EXPECTED: dict[str, tuple[set[str], set[str]]] = {
    "good": (set(), set()),
    "recv_32": ({"two-at-once", "one-in-pieces", "cr-then-lf", "long-lines"}, set()),
    "one_client_at_a_time": ({"concurrent"}, HOSTILE | {"fifty-at-once"}),
    "listen_1": ({"fifty-at-once"}, set()),
    "no_cr": ({"exact-answer"}, set()),
    "twelve_hours_off": ({"right-second"}, set()),
    "slow_clock": ({"right-second"}, set()),
    "time_of_the_connection": ({"right-second"}, set()),
    "strips": ({"cr-lf"}, set()),
    "answers_all": ({"nothing-else"}, set()),
    "whole_line": ({"any-time-request"}, {"long-lines", "high-bytes"}),
    "decodes": ({"high-bytes"}, set()),
    "dies_at_high_bytes": ({"high-bytes"}, set()),
    "dies_at_a_reset": ({"resets"}, set()),
    "dies_at_a_long_line": ({"endless-line"}, set()),
    "one_request": ({"several-requests"}, {"two-at-once"}),
    "ignores_quit": ({"quit"}, set()),
    "reads_to_the_end": ({"half-close"}, set()),
    "leaks": ({"no-leak"}, set()),
    "blocks_in_send": ({"never-reads"}, set()),
    "sleeps_at_bad_lines": ({"bad-flood"}, set()),
    "half_a_line": ({"answer"}, NEEDS_ANSWER),
    "http": ({"answer"}, NEEDS_ANSWER),
}
# These are judged below, in a zone in which their mistake is seen.
IN_A_ZONE = {"twelve_hour_clock", "utc"}
PARTS = 4


def test_every_server_is_judged() -> None:
    """Each file has its row, and each rule but that of the open port is broken by one of them."""
    assert {each.stem for each in FLAWED.glob("*.py")} == set(EXPECTED) | IN_A_ZONE
    broken = set().union(*(fails for fails, _ in EXPECTED.values()))
    assert {rule.name for rule in BASIC} - broken == {"port"}


@pytest.mark.parametrize("part", range(PARTS))
async def test_each_mistake_fails_its_rules_and_no_other(part: int) -> None:
    """A server with one mistake fails the rules of the table; all others hold, or depend on them."""
    names = list(EXPECTED)[part::PARTS]
    found = {}
    for report in await judge_files([path(name) for name in names]):
        verdicts = (named(report.findings, Verdict.FAILS), named(report.findings, Verdict.NOT_TRIED))
        found[Path(report.server.name).stem] = verdicts
    assert found == {name: EXPECTED[name] for name in names}


def zone_at(hour: int) -> str:
    """Return a zone in which it is this hour now, as hours west of Greenwich."""
    return f"{(datetime.now(UTC).hour - hour + 12) % 24 - 12:+}"


@pytest.mark.parametrize(
    ("name", "hour", "reason"),
    [
        ("twelve_hour_clock", 15, "twelve hours off: a 12-hour clock"),
        ("twelve_hours_off", 3, "twelve hours off, and not of a 12-hour clock"),
        ("slow_clock", 9, "the server's clock differs by -3 s"),
        ("time_of_the_connection", 9, "it was read when the client connected"),
    ],
)
async def test_a_wrong_time_is_explained(name: str, hour: int, reason: str) -> None:
    """Twelve hours, a 12-hour clock, a wrong clock and an old time are told from each other."""
    west = zone_at(hour)
    rules = [rule for rule in BASIC if rule.name in ("port", "answer", "right-second")]
    (report,) = await judge_files(
        [path(name)], command=f"env TZ=XXX{west} {COMMAND}", zone=ZoneInfo(f"Etc/GMT{west}"), rules=rules
    )
    assert reason in report.findings[-1].reason


async def test_another_zone_is_named() -> None:
    """A server that tells UTC, or another zone's time, is told from a server with a wrong clock."""
    rules = [rule for rule in BASIC if rule.name in ("port", "answer", "right-second")]
    kolkata = ZoneInfo("Asia/Kolkata")
    (utc,) = await judge_files([path("utc")], zone=kolkata, rules=rules)
    assert utc.findings[-1].reason.startswith("the server tells UTC, behind by 5:30 h; --timezone")
    (other,) = await judge_files(
        [path("slow_clock")], command=f"env TZ=XXX-5:45 {COMMAND}", zone=kolkata, rules=rules
    )
    expected = "the server tells the time of another zone, ahead by 0:15 h, and its clock differs by -3 s; "
    assert other.findings[-1].reason.startswith(expected)


def test_a_zone_has_the_hour() -> None:
    """The zones of these tests are those that they seem to be."""
    for hour in range(24):
        shown = datetime.now(ZoneInfo(f"Etc/GMT{zone_at(hour)}"))
        assert (shown.hour - hour) % 24 <= 1  # the next hour may begin meanwhile
