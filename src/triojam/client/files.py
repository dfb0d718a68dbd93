"""Files that a command writes at its end: whole, or not at all."""

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from errno import EACCES, EBUSY, EISDIR
from pathlib import Path

from triojam.errors import invalid_value


def check_output(option: str, path: Path | None) -> None:
    """Find out before the work whether a file can be written. Leaves nothing behind.

    Raises ConfigurationError that names the option.
    """
    if path is None:
        return
    try:
        _check(path)
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise invalid_value(str(path), option, f"a file that can be written ({reason})") from exc


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in one step: it has its old content until it has all of the new one.

    Keeps the mode of an existing file, and the links to it that are symbolic. A device, a FIFO and an output
    of this process are written directly. Raises OSError with the path as its file name.
    """
    try:
        present = _stat(path)
        if present is not None and (own := _own_output(present)) is not None:
            with open(own, "wb", closefd=False) as file:
                file.write(data)
        elif present is not None and not stat.S_ISREG(present.st_mode):
            path.write_bytes(data)
        else:
            _replace(_target(path), data, present)
    except OSError as exc:
        exc.filename, exc.filename2 = str(path), None
        raise


def _check(path: Path) -> None:
    present = _stat(path)
    if present is not None and stat.S_ISDIR(present.st_mode):
        raise OSError(EISDIR, os.strerror(EISDIR))
    if present is not None and _own_output(present) is not None:
        return
    if present is not None and not os.access(path, os.W_OK):
        raise OSError(EACCES, os.strerror(EACCES))
    if present is None or stat.S_ISREG(present.st_mode):
        tempfile.TemporaryFile(dir=_target(path).parent).close()


def _stat(path: Path) -> os.stat_result | None:
    """Return the status of what a path leads to, if that exists."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _target(path: Path) -> Path:
    """Return the file to replace: not a symbolic link, but what it names, even if that does not exist yet."""
    return Path(os.path.realpath(path))


def _own_output(present: os.stat_result) -> int | None:
    """Return the descriptor of stdout or stderr if that is this file: it is open, so it must stay."""
    for stream in (1, 2):
        with suppress(OSError):
            if os.path.samestat(present, os.fstat(stream)):
                return stream
    return None


def _replace(target: Path, data: bytes, present: os.stat_result | None) -> None:
    new = target.parent / f".triojam-{secrets.token_hex(8)}"
    try:
        with new.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if present is not None:
            new.chmod(stat.S_IMODE(present.st_mode))
        new.replace(target)
    except BaseException as exc:
        with suppress(OSError):
            new.unlink()
        # A file that is mounted by itself, as into a container, cannot be replaced.
        if not (isinstance(exc, OSError) and exc.errno == EBUSY):
            raise
        target.write_bytes(data)
