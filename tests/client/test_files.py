"""Files that commands write at their end: whole, or not at all."""

import errno
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.servers import PATIENCE
from triojam.client.files import check_output, write_whole
from triojam.errors import ConfigurationError

NEW = b"x" * 10_000


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no more than this into a file, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def program(words: str, *, stdout: int) -> subprocess.CompletedProcess[bytes]:
    """Run a program that uses these two functions, with `out` before and `end` behind."""
    source = (
        "import sys; from pathlib import Path; from triojam.client.files import *; "
        f"print('out', flush=True); {words}; print('end')"
    )
    return subprocess.run(
        [sys.executable, "-c", source], stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=PATIENCE
    )


TO_STDOUT = "check_output('--json', Path('/dev/stdout')); write_whole(Path('/dev/stdout'), b'data\\n')"


def test_a_new_file_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    """As if the command had opened the file itself."""
    file = tmp_path / "new"
    before = os.umask(0o026)
    try:
        check_output("--json", file)
        assert list(tmp_path.iterdir()) == []
        write_whole(file, NEW)
    finally:
        os.umask(before)
    assert file.read_bytes() == NEW
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [file]


def test_an_existing_file_keeps_its_mode_and_is_replaced(tmp_path: Path) -> None:
    """A reader that has the old file open still reads the old content."""
    file = tmp_path / "old"
    file.write_bytes(b"old")
    file.chmod(0o604)
    with file.open("rb") as reader:
        check_output("--json", file)
        assert file.read_bytes() == b"old"
        write_whole(file, NEW)
        assert reader.read() == b"old"
    assert file.read_bytes() == NEW
    assert stat.S_IMODE(file.stat().st_mode) == 0o604
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_stays_one(tmp_path: Path, *, exists: bool) -> None:
    """The file that it names is written, also if that does not exist yet."""
    (tmp_path / "folder").mkdir()
    file, link = tmp_path / "folder" / "file", tmp_path / "link"
    link.symlink_to("folder/file")
    if exists:
        file.write_bytes(b"old")
    check_output("--json", link)
    assert file.exists() == exists
    write_whole(link, NEW)
    assert link.is_symlink()
    assert file.read_bytes() == NEW
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_changes_nothing(tmp_path: Path, *, exists: bool) -> None:
    """The error names the file; the old content stays, and nothing else is left."""
    file = tmp_path / "file"
    if exists:
        file.write_bytes(b"old")
    with largest_file(5000), pytest.raises(OSError, match="File too large") as caught:
        write_whole(file, NEW)
    assert caught.value.filename == str(file)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"] * exists


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during the write is not an OSError."""

    def interrupted(_file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", NEW)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_replaced_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is mounted by itself, as into a container, is busy."""

    def busy(self: Path, _target: Path) -> Path:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self))

    file = tmp_path / "file"
    file.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", busy)
    write_whole(file, NEW)
    assert file.read_bytes() == NEW
    assert list(tmp_path.iterdir()) == [file]


def test_a_fifo_is_written_directly(tmp_path: Path) -> None:
    """The check does not open it: its reader would see an end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    check_output("--json", fifo)
    with subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE) as reader:
        write_whole(fifo, NEW)
        read, _ = reader.communicate(timeout=PATIENCE)
    assert read == NEW
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_device_is_written_directly() -> None:
    """/dev/null takes everything, /dev/full nothing."""
    for name in ("/dev/null", "/dev/full"):
        check_output("--json", Path(name))
    write_whole(Path("/dev/null"), NEW)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(Path("/dev/full"), NEW)
    assert caught.value.filename == "/dev/full"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_stdout_is_not_replaced(tmp_path: Path) -> None:
    """As a pipe or as a file, stdout gets the data between the other lines."""
    done = program(TO_STDOUT, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\ndata\nend\n", b"")
    file = tmp_path / "stdout"
    with file.open("wb") as stdout:
        done = program(TO_STDOUT, stdout=stdout.fileno())
    assert (done.returncode, file.read_bytes(), done.stderr) == (0, b"out\ndata\nend\n", b"")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is a directory"),
        ("missing/file", "no such file or directory"),
        ("file/file", "not a directory"),
        ("loop", "too many levels of symbolic links"),
        ("x" * 300, "file name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, name: str, reason: str
) -> None:
    """One line names the option, the file and the reason."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    file = tmp_path / name
    with pytest.raises(ConfigurationError) as caught:
        check_output("--json", file)
    expected = f"expected a file that can be written ({reason})"
    assert str(caught.value) == f"invalid value {str(file)!r} for --json: {expected}"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_without_permission_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could be replaced all the same, but it is not to be changed."""
    file = tmp_path / "file"
    file.touch(0o444)
    monkeypatch.setattr(os, "access", lambda *_arguments: False)  # root may write everything
    with pytest.raises(ConfigurationError, match=r"a file that can be written \(permission denied\)"):
        check_output("--json", file)


def test_without_a_file_nothing_is_checked() -> None:
    """An option that is not given has no file."""
    check_output("--json", None)
