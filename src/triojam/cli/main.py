"""The command line: which side's commands are meant, and what becomes of their errors."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from triojam.errors import ConfigurationError, OperatorError
from triojam.version import __version__

if TYPE_CHECKING:
    from cyclopts import App

FAILED = 1
INTERRUPTED = 130
READER_GONE = 141  # as a shell shows a program that SIGPIPE ended

# What reads a plugin for Nagios takes status 2 for a server that fails.
NAGIOS = "--nagios"
UNKNOWN = 3

ASK_COMMAND = "ask"
CLIENT_COMMANDS = (ASK_COMMAND, "watch", "load", "verify")
LAB_COMMAND = "lab"
CHECK_COMMAND = "check"  # shows every error, not only the first

# In characters. A table for one column never ends, and one for COLUMNS=999999999 fills the memory.
NARROWEST, WIDEST = 40, 999


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's own, and return the exit status.

    0: done; 1: a port is taken, or a server failed; 2: a setting or word is wrong, said in one line on
    stderr; 3: a load and its server's counters do not balance; 130, 143: interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    _limit_width()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without ± is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    if words and words[0] in CLIENT_COMMANDS:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what was printed must not be lost
    if words and words[0] in (*CLIENT_COMMANDS, LAB_COMMAND) and hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # only a server stays when its terminal has gone
    try:
        status = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return READER_GONE
    except OSError as exc:
        _drop_output()
        print(f"triojam: {exc.strerror or exc}", file=sys.stderr)
        return FAILED
    except OperatorError as exc:
        return _report(exc, words)
    return status


def _report(exc: OperatorError, words: Sequence[str]) -> int:
    """Say what the operator can mend, and return the exit status."""
    if NAGIOS in words and words[0] == ASK_COMMAND:
        print(f"TIME UNKNOWN - {exc}".replace("|", "/"))
        return UNKNOWN
    more = exc.more if isinstance(exc, ConfigurationError) and CHECK_COMMAND in words else ()
    for each in (exc, *more):
        print(f"triojam: {each}", file=sys.stderr)
    return exc.exit_status


def _limit_width() -> None:
    """Set the variable COLUMNS if the terminal, or that variable, is too narrow or too wide for a table."""
    text = os.environ.get("COLUMNS", "")
    width: int | None = None  # not known
    if text.isdigit():  # as the library of the tables decides whether it reads the variable
        width = int(text) if text.isascii() and len(text) <= len(str(WIDEST)) else WIDEST + 1
    else:
        for descriptor in range(3):
            with suppress(OSError):
                width = width or os.get_terminal_size(descriptor).columns or None
    if width is not None and not NARROWEST <= width <= WIDEST:
        os.environ["COLUMNS"] = str(min(max(width, NARROWEST), WIDEST))


def _drop_output() -> None:
    """Let the flush at exit succeed: Python would complain once more about a broken stdout."""
    _, writing = os.pipe()  # there may be no /dev/null
    os.dup2(writing, sys.stdout.fileno())


def _run(words: Sequence[str]) -> int:
    if list(words) == ["--version"]:  # the rest of the command line takes a tenth of a second to import
        print(__version__)
        return 0
    from cyclopts import CycloptsError  # noqa: PLC0415  # see above

    from triojam.cli.common import in_our_words  # noqa: PLC0415  # see above

    try:
        return _make_app(words)(words) or 0
    except CycloptsError as exc:
        raise in_our_words(exc) from exc


def _make_app(words: Sequence[str]) -> "App":
    # A client starts twice as fast without what only the server needs, and the other way round.
    if words and words[0] in CLIENT_COMMANDS:
        from triojam.cli.client import make_app  # noqa: PLC0415  # see above
    elif words and words[0] == LAB_COMMAND:
        # Nor are settings of a server around here the lab's.
        from triojam.cli.lab import make_app  # noqa: PLC0415  # see above
    else:
        from triojam.cli.serve import make_app  # noqa: PLC0415  # see above
    return make_app()
