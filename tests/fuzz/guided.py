"""One target under atheris: `python -m tests.fuzz.guided TARGET [flags and corpus folders of libFuzzer]`.

atheris observes which lines of the package an input reaches, and builds new inputs from those that reach new
lines. It ends its process, so it runs in a separate one.
"""

import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import atheris


def main(arguments: Sequence[str]) -> None:
    """Fuzz until libFuzzer ends the process."""
    target, *flags = arguments
    with atheris.instrument_imports(include=["triojam", "tomllib", "h11"]):
        try_one = importlib.import_module(f"tests.fuzz.{target}").try_one
    merging = any(flag.endswith("merge=1") for flag in flags)
    atheris.Setup([_again(target) if merging else sys.argv[0], *flags], try_one)
    atheris.Fuzz()


def _again(target: str) -> str:
    """Write a program that starts this one: for a merge, libFuzzer starts its own argv[0] with more flags."""
    program = Path(tempfile.gettempdir()) / f"fuzz-{target}-again"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz.guided {target} "$@"\n')
    program.chmod(0o700)
    return str(program)


if __name__ == "__main__":
    main(sys.argv[1:])
