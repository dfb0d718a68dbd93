"""Fuzzing files: any content and any kind of file that a setting names leaves a server as it was, or is used.

The first byte of an input chooses the file, the second its kind, the third how a good file is changed; the
rest is content. The good files are those of a server with TLS, passwords and a time zone.
"""

import os
import socket
import tempfile
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import trustme

from triojam.errors import ConfigurationError
from triojam.settings.fields import Settings
from triojam.settings.files import load_files
from triojam.settings.sources import read_settings_file
from triojam.settings.zones import SYSTEM_ZONE, load_zone

# bcrypt of "x", at the lowest cost.
USER = b"alice:$2y$04$zU6/t75iT5Ba4XDWqxZtD.BQEtoDD3aAD1z7gmWsC8nCTvr6GsULG\n"
ZONE = "Test/Zone"
TARGETS = (
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "metrics_passwords",
    "zone",
    "settings",
    "localtime",
)
KINDS = ("file", "empty", "folder", "missing", "fifo", "device", "socket", "dangling", "loop")
LONGEST_LINE = 1000
MOMENTS = (0, 1_000_000_000, 2**31, 2**33)


@cache
def good_files() -> dict[str, bytes]:
    """Return the content of a good file of each kind."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    berlin = next(
        Path(folder, "Europe/Berlin").read_bytes()
        for folder in zoneinfo.TZPATH
        if Path(folder, "Europe/Berlin").is_file()
    )
    return {
        "tls_certificate": b"".join(each.bytes() for each in issued.cert_chain_pems),
        "tls_key": issued.private_key_pem.bytes(),
        "tls_client_ca": authority.cert_pem.bytes(),
        "metrics_passwords": USER,
        "zone": berlin,
        "settings": b'port = 0\ndeny = ["192.0.2.0/24"]\n',
        "localtime": berlin,
    }


def try_one(data: bytes) -> None:
    """Read all files of a server, one of them as the input says: they are used, or an error is one line."""
    which, kind_of, how, *more = data + bytes(3)
    target, kind = TARGETS[which % len(TARGETS)], KINDS[kind_of % len(KINDS)]
    content = _changed(good_files()[target], how, bytes(more))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {each: folder / each for each in TARGETS} | {"zone": folder / "zones" / ZONE}
        paths["zone"].parent.mkdir(parents=True)
        for each, path in paths.items():
            path.write_bytes(good_files()[each])
        paths[target].unlink()
        with _made(paths[target], kind, content), _zones(folder / "zones", paths["localtime"]):
            error = _read_all(paths)
            assert error.isprintable(), f"not one line of plain text: {error!r}"
            assert len(error) <= LONGEST_LINE


def _read_all(paths: dict[str, Path]) -> str:
    """Read all files as a reload does; return the error, or nothing."""
    named = {name: str(path) for name, path in paths.items() if name.startswith(("tls", "metrics"))}
    try:
        given: dict[str, Any] = read_settings_file(str(paths["settings"]), "--config", again=True)
        zone = load_files(Settings(**given | named, tls_port=0, metrics_tls=True, timezone=ZONE)).zone
        for moment in MOMENTS:  # a bad zone may only show when it is used
            datetime.fromtimestamp(moment, zone)
    except ConfigurationError as exc:
        return str(exc)
    try:
        load_zone(SYSTEM_ZONE)
    except ValueError as exc:
        return str(exc)
    return ""


def _changed(content: bytes, how: int, more: bytes) -> bytes:
    """Cut, replace or extend good content."""
    place = int.from_bytes(more[:2]) % (len(content) + 1)
    match how % 4:
        case 0:
            return content[:place]
        case 1:
            return content[:place] + more[2:] + content[place + len(more[2:]) :]
        case 2:
            return content[:place] + more[2:] + content[place:]
        case _:
            return more


@contextmanager
def _made(path: Path, kind: str, content: bytes) -> Iterator[None]:
    """Make a file of a kind."""
    match kind:
        case "file":
            path.write_bytes(content)
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "dangling":
            path.symlink_to(path.parent / "nothing")
        case "loop":
            path.symlink_to(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
                yield
            return
        case _:
            pass
    yield


@contextmanager
def _zones(folder: Path, local: Path) -> Iterator[None]:
    """Let Python find zones in a folder, and the C library the system's zone in a file."""
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(folder)])
    try:
        with patch.dict(os.environ, {"TZ": f":{local}"}):
            yield
    finally:
        zoneinfo.reset_tzpath(before)
