"""The clock that answers are made from."""

import struct
import time
import zoneinfo
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import pytest

from triojam.serving.clock import Clock


def at(moment: datetime) -> float:
    """Return seconds since the epoch."""
    return moment.timestamp()


class Hands:
    """A wall clock that is set by hand."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


def test_never_a_stale_second() -> None:
    """The rendering changes with the second, in both directions, and at midnight."""
    hands = Hands(at(datetime(2026, 6, 30, 23, 59, 59, 999_999, UTC)))
    clock = Clock(zone="UTC", now=hands)
    assert clock.jam() == b"JAM 23:59:59\r\n"
    hands.seconds += 0.000_002
    assert clock.jam() == b"JAM 00:00:00\r\n"
    hands.seconds -= 3600
    assert clock.jam() == b"JAM 23:00:00\r\n"


def test_a_system_that_counts_leap_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the C library knows of a 61st second, the answer is a time of day all the same."""
    leap = at(datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)) + 1
    # RFC 8536, section 3: version 1, one leap second, one type of local time, named UTC.
    header = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 1, 0, 1, 4)
    zone = tmp_path / "right"
    zone.write_bytes(header + struct.pack(">lBB", 0, 0, 0) + b"UTC\0" + struct.pack(">ll", int(leap), 1))
    with monkeypatch.context() as patch:
        patch.setenv("TZ", f":{zone}")
        clock = Clock(now=lambda: leap)
        assert time.localtime(leap).tm_sec == 60
        assert clock.jam() == b"JAM 23:59:59\r\n"
    time.tzset()


def test_the_system_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's zone is the one that the C library uses, re-read when the zone is set anew."""
    moment = at(datetime(2026, 1, 1, tzinfo=UTC))
    clock = Clock(now=lambda: moment)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-07:30")
        clock.set_zone("system")
        assert clock.jam() == b"JAM 07:30:00\r\n"
    time.tzset()


def test_a_replaced_zone_file(tmp_path: Path) -> None:
    """A zone whose file was replaced is read anew when it is set again, and not before."""
    zones = resources.files("tzdata") / "zoneinfo"
    zone = tmp_path / "Lab"
    zone.write_bytes((zones / "UTC").read_bytes())
    zoneinfo.reset_tzpath([tmp_path])
    try:
        clock = Clock(zone="Lab", now=lambda: 0.0)
        assert clock.jam() == b"JAM 00:00:00\r\n"
        zone.write_bytes((zones / "Asia" / "Jakarta").read_bytes())
        assert clock.jam() == b"JAM 00:00:00\r\n"
        clock.set_zone("Lab")
        assert clock.jam() == b"JAM 07:00:00\r\n"
    finally:
        zoneinfo.reset_tzpath()
