"""Time zones from files that may be anything."""

import importlib.resources
import os
import struct
import time
import zoneinfo
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.fuzz.files import good_files
from triojam.settings.zones import SYSTEM_ZONE, load_zone, reload_system_zone

SUMMER = 1_753_000_000.0


@pytest.fixture
def zones(tmp_path: Path) -> Iterator[Path]:
    """A folder in which Python looks for zones, with one of them."""
    (tmp_path / "Test").mkdir()
    (tmp_path / "Test" / "Zone").write_bytes(good_files()["zone"])
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(tmp_path)])
    yield tmp_path
    zoneinfo.reset_tzpath(before)


def test_a_zone_is_read_from_the_system_or_the_package(zones: Path) -> None:
    """A zone comes from the system's folder, or else from the package tzdata."""
    for name in ("Test/Zone", "Asia/Jakarta"):
        zone = load_zone(name)
        assert zone is not None
        assert str(zone) == name
    assert load_zone(SYSTEM_ZONE) is None


@pytest.mark.parametrize("name", ["Nowhere", "", "../Test/Zone", "/etc/passwd", "a\0b", "Test", "."])
def test_other_names_are_no_zones(name: str, zones: Path) -> None:
    """A name outside of the folder, of a folder or of nothing is an error with a reason."""
    with pytest.raises(ValueError, match=r"\w"):
        load_zone(name) or pytest.fail("the system's zone")


@pytest.mark.parametrize("kept", [0, 3, 44, 1000, -1])
def test_a_zone_file_that_is_cut_off_is_an_error(kept: int, zones: Path) -> None:
    """However much of a zone file is left, reading it ends, with an error."""
    (zones / "Test" / "Zone").write_bytes(good_files()["zone"][:kept])
    with pytest.raises(ValueError, match=r"cut off|not a file of a time zone|damaged"):
        load_zone("Test/Zone")


def make_zone(*, times: int = 1, index: int = 0, body: bytes = b"", end: bytes = b"\nUTC0\n") -> bytes:
    """Make a zone file of version 2 (RFC 8536, section 3), perhaps a bad one."""
    head = b"TZif2" + bytes(15)
    first = head + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lBB", 0, 0, 0) + b"UTC\0"
    second = (
        head
        + struct.pack(">6l", 0, 0, 0, times, 1, 4)
        + struct.pack(">q", 0) * times
        + bytes([index]) * times
    )
    return first + second + struct.pack(">lBB", 0, 0, 0) + b"UTC\0" + body + end


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (make_zone(index=1), "damaged"),  # a type behind the last one
        (make_zone(index=255), "damaged"),
        (make_zone(end=b""), "cut off"),
        (make_zone(end=b"\n"), "cut off"),  # the newline before the footer, and no footer
        (make_zone(end=b"\nUTC0"), "cut off"),
        (make_zone()[:-12], "cut off"),
        (make_zone(times=40_000)[:60], "cut off"),
        (b"TZif" + bytes(40), "damaged"),  # no type at all
        (b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, -1, 1, 4), "damaged"),
    ],
)
def test_a_damaged_zone_file_is_an_error(content: bytes, why: str, zones: Path) -> None:
    """Counts and indices are checked: otherwise Python's readers never end, or use memory beyond a table."""
    (zones / "Test" / "Zone").write_bytes(content)
    with pytest.raises(ValueError, match=why):
        load_zone("Test/Zone")


def test_a_small_zone_file_is_taken(zones: Path) -> None:
    """The smallest good file of version 2 is a zone."""
    (zones / "Test" / "Zone").write_bytes(make_zone())
    zone = load_zone("Test/Zone")
    assert datetime.fromtimestamp(0, zone).hour == 0


def test_every_zone_of_the_package_is_taken() -> None:
    """The checks refuse no zone that there is."""
    for name in importlib.resources.files("tzdata").joinpath("zones").read_text().split():
        assert load_zone(name) is not None


@pytest.mark.parametrize("variable", ["{}", ":{}"])
def test_the_systems_zone_is_read_anew(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replaced file of the system's zone counts, although TZ has the same value as before."""
    local = tmp_path / "localtime"
    jakarta = next(
        Path(each, "Asia/Jakarta") for each in zoneinfo.TZPATH if Path(each, "Asia/Jakarta").is_file()
    )
    monkeypatch.setenv("TZ", variable.format(local))
    try:
        for content, hours in ((good_files()["zone"], 2), (jakarta.read_bytes(), 7)):
            local.unlink(missing_ok=True)
            local.write_bytes(content)
            assert load_zone(SYSTEM_ZONE) is None
            reload_system_zone()
            assert time.localtime(SUMMER).tm_gmtoff == hours * 3600
        local.write_bytes(content[:-1])
        with pytest.raises(ValueError, match="cut off"):
            load_zone(SYSTEM_ZONE)
        assert os.environ["TZ"] == variable.format(local)
        assert time.localtime(SUMMER).tm_gmtoff == 7 * 3600
    finally:
        monkeypatch.undo()
        time.tzset()
