"""`python -m triojam`, and the console script."""

import os
import signal
import sys

STDERR = 2
BAD_SYSTEM = 2  # the exit status for what an operator can mend


def main() -> int:
    """Run the command line and return its exit status."""
    # Until the service takes over, Ctrl-C ends the process without a word: importing takes a while.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getpid() == 1:
        # The first process of a container: what would end another process does nothing to it (kill(2)).
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, lambda signum, _: os._exit(128 + signum))
    if hasattr(signal, "SIGHUP"):  # to a server that has not begun to serve, there is nothing to read again
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _occupy_standard_descriptors()
    except OSError as exc:
        if sys.stderr is not None:
            print(f"triojam: {os.devnull}: {exc.strerror or exc}", file=sys.stderr)  # noqa: T201  # no log yet
        return BAD_SYSTEM
    from triojam.cli.main import main as run_command_line  # noqa: PLC0415  # only now can it be interrupted

    return run_command_line()


def _occupy_standard_descriptors() -> None:
    """Open what the caller has closed of descriptors 0 to 2, or a client's socket would become our stderr."""
    for descriptor in range(STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free (open(2))
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # for good
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # for good


if __name__ == "__main__":
    sys.exit(main())
