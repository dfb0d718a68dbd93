"""The command line: which side's commands are meant, and what becomes of their errors."""

import io
import os
import signal
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from triojam.errors import OperatorError

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130
READER_GONE = 141  # as a shell shows a program that SIGPIPE ended

CLIENT_COMMANDS = ("ask", "watch", "load")
LAB_COMMAND = "lab"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's own, and return the exit status.

    0: done; 1: a port is taken, or a server failed; 2: a setting or word is wrong, said in one line on
    stderr; 3: a load and its server's counters do not balance; 130: interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no ± is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    if words and words[0] in CLIENT_COMMANDS:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what was printed must not be lost
    if words and words[0] in (*CLIENT_COMMANDS, LAB_COMMAND) and hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # only a server stays when its terminal has gone
    try:
        status = _make_app(words)(words) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"triojam: {exc.strerror or exc}", file=sys.stderr)
        return FAILED
    except (OperatorError, CycloptsError) as exc:
        print(f"triojam: {' '.join(str(exc).split())}", file=sys.stderr)
        return exc.exit_status if isinstance(exc, OperatorError) else BAD_USAGE
    return status


def _make_app(words: Sequence[str]) -> App:
    # A client starts twice as fast without what only the server needs, and the other way round.
    if words and words[0] in CLIENT_COMMANDS:
        from triojam.client_commands import make_app  # noqa: PLC0415  # see above
    elif words and words[0] == LAB_COMMAND:
        # Nor are settings of a server around here the lab's.
        from triojam.lab_commands import make_app  # noqa: PLC0415  # see above
    else:
        from triojam.server_commands import make_app  # noqa: PLC0415  # see above
    return make_app()
