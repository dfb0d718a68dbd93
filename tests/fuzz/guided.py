"""One target under atheris: `python -m tests.fuzz.guided TARGET [flags and corpus folders of libFuzzer]`.

atheris watches which lines of the package an input reaches, keeps those that reach new ones, and goes on
from them. It ends the process it runs in, so it has one of its own.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import atheris


def main(arguments: Sequence[str]) -> None:
    """Fuzz until libFuzzer has had enough; it then ends the process."""
    target, *flags = arguments
    with atheris.instrument_imports(include=["triojam", "tomllib"]):
        if target == "protocol":
            from tests.fuzz.protocol import try_one  # noqa: PLC0415  # what is imported here is watched
        else:
            from tests.fuzz.settings import try_one  # noqa: PLC0415  # see above
    merging = any(flag.endswith("merge=1") for flag in flags)
    atheris.Setup([_again(target) if merging else sys.argv[0], *flags], try_one)
    atheris.Fuzz()


def _again(target: str) -> str:
    """Return a program that is this one: to merge, libFuzzer starts its own first word, with more flags."""
    program = Path(tempfile.gettempdir()) / f"fuzz-{target}-again"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz.guided {target} "$@"\n')
    program.chmod(0o700)
    return str(program)


if __name__ == "__main__":
    main(sys.argv[1:])
