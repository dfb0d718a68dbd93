"""`python -m triojam`, and the console script."""

import os
import signal
import sys

STDERR = 2


def main() -> int:
    """Run the command line and return its exit status."""
    # Until the service takes over, Ctrl-C ends the process without a word: importing takes a while.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _occupy_standard_descriptors()
    from triojam.cli import main as run_command_line  # noqa: PLC0415  # only now can it be interrupted

    return run_command_line()


def _occupy_standard_descriptors() -> None:
    """Open what the caller has closed of descriptors 0 to 2, or a client's socket would become our stderr."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # for good
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # for good


if __name__ == "__main__":
    sys.exit(main())
