"""Fuzzing the settings: any file, variables and flags give valid settings, or one line with the error.

An input is cut at the bytes 0xFF. The first part is the text of a settings file. Each further part gives one
setting: its first byte chooses which, and whether by the file, by a variable or by a flag; the rest is the
value.
"""

import io
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from typing import Annotated, Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

from cyclopts import App, Parameter

from triojam.cli.invocation import NO_FLAGS, FlagsParameter, Invocation
from triojam.cli.main import main
from triojam.errors import ConfigurationError
from triojam.settings.fields import Settings
from triojam.settings.files import load_files

SEPARATOR = b"\xff"
NAMES = [each.name for each in fields(Settings)]
# The check of a value, by the words that describe the setting.
TAKEN: dict[str, Callable[[Any], bool]] = {
    "a port from 0": lambda value: value is None or 0 <= value <= 65535,
    "seconds, 0 or more": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "bytes, 6 or more": lambda value: value == 0 or value > 5,
    "a whole number, 0 or more": lambda value: type(value) is int and value >= 0,
    "true or false": lambda value: value is True or value is False,
    "an IP address or host name": lambda value: isinstance(value, str) and value != "",
    "system or an IANA time zone name": lambda value: (
        value == "system" or ZoneInfo.no_cache(value) is not None
    ),
}
# Reads the flags; its one command does not run.
APP = App(name="triojam", exit_on_error=False, print_error=False)


@APP.default
def _serve(
    flags: FlagsParameter = NO_FLAGS, *, invocation: Annotated[Invocation, Parameter(parse=False)]
) -> int:
    raise NotImplementedError


# No error line may flood a terminal or a log.
LONGEST_LINE = 1000


def encode(text: bytes, *parts: bytes) -> bytes:
    """Make an input of the text of a file and of single settings made by `part`."""
    return SEPARATOR.join([text, *parts])


def part(name: str, value: bytes, source: int = 0) -> bytes:
    """Make the part for one setting. source: 0 the file, 1 a variable, 2 a flag."""
    return bytes([NAMES.index(name) + 64 * (source + 1)]) + value


def try_one(data: bytes) -> None:
    """Read the settings from one input. The result must be valid settings or an error of one line.

    One input in 32, chosen by checksum, also runs through `triojam check` and `triojam`, which takes ten
    times as long. All must agree.
    """
    text, *parts = data.split(SEPARATOR)
    lines: list[bytes] = []
    flags: list[str] = []
    variables: dict[str, str] = {}
    for each in filter(None, parts):
        name = NAMES[(each[0] & 63) % len(NAMES)]
        value = each[1:].replace(b"\0", b"").decode("utf-8", "surrogateescape")  # as Python decodes words
        match each[0] >> 6:
            case 2:
                variables[f"TRIOJAM_{name.upper()}"] = value
            case 3:
                flags.append(f"--{name.replace('_', '-')}={value}")
            case _:
                lines.append(name.encode() + b" = " + each[1:] + b"\n")
    with tempfile.NamedTemporaryFile(suffix=".toml") as file, patch.dict(os.environ, variables):
        file.write(b"".join(lines) + text)
        file.flush()
        settings: Settings | None = None
        try:
            invocation = Invocation(APP, flags, file.name, os.environ)
            invocation.command()
            settings = invocation.read().settings
        except ConfigurationError as exc:
            _look_at_complaint(str(exc), file.name)
        else:
            _look_at_settings(settings)
        if zlib.crc32(data) % 32 == 0:
            _compare_commands(settings, ["--config", file.name, *flags])


class _Ended:
    """The end of a command line, and the settings with which it would have served."""

    def __init__(self, *words: str) -> None:
        self.settings: Settings | None = None
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            patch("triojam.daemon.run", self._serve),
            patch("triojam.process.sockets.find_unusable_hosts", lambda _: []),  # asks name servers
        ):
            self.status = main(words)
        out.seek(0)
        err.seek(0)
        self.written = out.read()
        self.complaint = err.read()

    def _serve(self, settings: Settings, *, reread: Callable[[], Settings]) -> int:
        assert reread() == settings, "SIGHUP reads other settings from the same sources"
        self.settings = settings
        load_files(settings)
        return 0


def _compare_commands(settings: Settings | None, words: Sequence[str]) -> None:
    checked, served = _Ended("check", *words), _Ended(*words)
    assert served.settings == settings
    # `check` prints every error, and serving the first.
    assert checked.complaint.splitlines()[:1] == served.complaint.splitlines()
    if settings is None or checked.status:  # a named file may be bad although the setting is valid
        assert (checked.status, served.status, checked.written, served.written) == (2, 2, "", "")
        assert served.complaint.startswith("triojam: "), repr(served.complaint)
        assert served.complaint.count("\n") == 1, repr(served.complaint)
        return
    assert (checked.status, served.status, served.written, checked.complaint) == (0, 0, "", "")
    shown = {each.name: _shown(getattr(settings, each.name)) for each in fields(Settings)}
    assert [line.split(" ")[0] for line in checked.written.splitlines()] == NAMES, repr(checked.written)
    assert all(f" {value} " in checked.written for value in shown.values())
    again = _Ended(*(f"--{name.replace('_', '-')}={value}" for name, value in shown.items()))
    assert again.settings == settings, f"what is shown cannot be given back: {again.complaint!r}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = "none" if value is None else str(value)
    return text if text.isprintable() else " ".join(text.split())


def _look_at_complaint(text: str, file: str) -> None:
    assert text.isprintable(), f"not one line of plain text: {text!r}"
    assert len(text) <= LONGEST_LINE, f"{len(text)} characters: {text[:200]!r}"
    spelled = [f(name) for name in NAMES for f in (str, str.upper, lambda name: name.replace("_", "-"))]
    assert any(name in text for name in [file, *spelled]), f"names neither file nor setting: {text!r}"


def _look_at_settings(settings: Settings) -> None:
    for each in fields(Settings):
        value = getattr(settings, each.name)
        for takes, valid in TAKEN.items():
            assert not each.metadata["takes"].startswith(takes) or valid(value), f"{each.name}={value!r}"
