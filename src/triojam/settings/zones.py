"""Time zones, read from files that may be cut off, replaced or no zones at all."""

import importlib.resources
import io
import os
import struct
import time
import zoneinfo
from datetime import tzinfo
from pathlib import Path, PurePosixPath

from triojam.settings.reading import read_bounded

SYSTEM_ZONE = "system"
# Where the C library finds the system's zone, unless TZ names another file (tzset(3)).
_LOCAL = "/etc/localtime"
_MAGIC = b"TZif"
_HEADER = 44  # bytes


def load_zone(name: str) -> tzinfo | None:
    """Read the zone of an IANA name anew; None for the system's, whose file is looked at.

    Raises ValueError that says why not. The C library would serve UTC for a bad file, without an error.
    """
    return read_zone(name)[0]


def read_zone(name: str) -> tuple[tzinfo | None, bytes]:
    """Do the same as `load_zone`, and return the content of the zone's file, too."""
    if name == SYSTEM_ZONE:
        return None, _read_system_zone()
    content = _read(_checked(name))
    return _parse(content, name), content


def reload_system_zone() -> None:
    """Let the C library read the system's zone anew. No other thread may render a local time meanwhile."""
    if hasattr(time, "tzset"):  # Windows has none
        # While the value of TZ stays the same, tzset() need not look at the file.
        variable = os.environ.get("TZ")
        os.environ["TZ"] = "UTC0"
        time.tzset()
        del os.environ["TZ"]
        if variable is not None:
            os.environ["TZ"] = variable
        time.tzset()


def _read_system_zone() -> bytes:
    """Return the content of the file that the C library reads; nothing if TZ is a rule, or without a file."""
    variable = os.environ.get("TZ")
    text = _LOCAL if variable is None else variable.removeprefix(":")
    file = Path(text)
    if not file.is_absolute():
        try:
            return _read(_checked(text))
        except ValueError:
            return b""
    if not file.exists():
        return b""
    content = _bytes_of(file)
    _parse(content, text)
    return content


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or {"..", "."} & set(path.parts) or "\0" in name:
        raise ValueError("no such zone")
    return path


def _read(path: PurePosixPath) -> bytes:
    """Return the content of a zone's file: the system's, or that of the package tzdata."""
    for folder in zoneinfo.TZPATH:
        file = Path(folder, path)
        if file.exists():
            return _bytes_of(file)
    try:
        packaged = importlib.resources.files("tzdata").joinpath("zoneinfo", *path.parts)
        if packaged.is_file():
            return packaged.read_bytes()
    except (ImportError, OSError, ValueError):
        pass
    raise ValueError("no such zone")


def _bytes_of(file: Path) -> bytes:
    try:
        return read_bounded(str(file))
    except OSError as exc:
        raise ValueError((exc.strerror or str(exc)).lower()) from exc


def _parse(content: bytes, name: str) -> tzinfo:
    """Make a zone of a file's content (RFC 8536)."""
    if not content.startswith(_MAGIC):
        raise ValueError("not a file of a time zone")
    try:
        end = _end_of_block(content, 0, 4)
        if content[4:5] != b"\0":  # from version 2 on, a second block and a footer follow
            end = _end_of_block(content, end, 8)
            if content[end : end + 1] != b"\n" or b"\n" not in content[end + 1 :]:
                raise ValueError("the file of the zone is cut off")
        return zoneinfo.ZoneInfo.from_file(io.BytesIO(content), key=name)
    except struct.error as exc:
        raise ValueError("the file of the zone is cut off") from exc


def _end_of_block(content: bytes, start: int, size: int) -> int:
    """Return where a header with its data ends. size: of a time, in bytes.

    Python's readers take all of this for granted: one reads on for ever where a line does not end, the other
    uses the memory behind its table of types.
    """
    counts: tuple[int, ...] = struct.unpack(">6l", content[start + 20 : start + _HEADER])
    utc, standard, leaps, times, types, letters = counts
    indices = content[start + _HEADER + times * size :][:times] if times >= 0 else b""
    bad_index = any(each >= types for each in indices)
    if min(utc, standard, leaps, times, letters) < 0 or types < 1 or bad_index:
        raise ValueError("the file of the zone is damaged")
    end = start + _HEADER + times * (size + 1) + types * 6 + letters + leaps * (size + 4) + standard + utc
    if len(indices) != times or end > len(content):
        raise ValueError("the file of the zone is cut off")
    return end
