"""The clock of the answers."""

import struct
import time
import zoneinfo
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import pytest

from triojam.serving.clock import Clock
from triojam.settings.zones import load_zone, reload_system_zone


def test_a_leap_second_is_rendered_as_a_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the C library counts a 61st second, the answer is a time of day all the same."""
    leap = datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp() + 1
    # RFC 8536, section 3: version 1, one leap second, one type of local time, named UTC.
    header = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 1, 0, 1, 4)
    zone = tmp_path / "right"
    zone.write_bytes(header + struct.pack(">lBB", 0, 0, 0) + b"UTC\0" + struct.pack(">ll", int(leap), 1))
    with monkeypatch.context() as patch:
        patch.setenv("TZ", f":{zone}")
        time.tzset()
        clock = Clock(now=lambda: leap)
        assert time.localtime(leap).tm_sec == 60
        assert clock.jam() == b"JAM 23:59:59\r\n"
    time.tzset()


def test_the_system_zone_is_read_again_when_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's zone is the C library's zone, which a reload reads again."""
    moment = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    clock = Clock(now=lambda: moment)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-07:30")
        reload_system_zone()
        clock.set_zone(None)
        assert clock.jam() == b"JAM 07:30:00\r\n"
    time.tzset()


def test_a_replaced_zone_file_is_read_when_the_zone_is_set(tmp_path: Path) -> None:
    """A zone file that was replaced is read when the zone is set again, and not before."""
    zones = resources.files("tzdata") / "zoneinfo"
    zone = tmp_path / "Lab"
    zone.write_bytes((zones / "UTC").read_bytes())
    zoneinfo.reset_tzpath([tmp_path])
    try:
        clock = Clock(zone=load_zone("Lab"), now=lambda: 0.0)
        assert clock.jam() == b"JAM 00:00:00\r\n"
        zone.write_bytes((zones / "Asia" / "Jakarta").read_bytes())
        assert clock.jam() == b"JAM 00:00:00\r\n"
        clock.set_zone(load_zone("Lab"))
        assert clock.jam() == b"JAM 07:00:00\r\n"
    finally:
        zoneinfo.reset_tzpath()
