"""One target under atheris: `python -m tests.fuzz.guided TARGET [flags and corpus folders of libFuzzer]`.

atheris watches which lines of the package an input reaches, keeps those that reach new ones, and goes on
from them. It ends the process it runs in, so it has one of its own.
"""

import sys
from collections.abc import Sequence

import atheris


def main(arguments: Sequence[str]) -> None:
    """Fuzz until libFuzzer has had enough; it then ends the process."""
    target, *flags = arguments
    with atheris.instrument_imports(include=["triojam", "tomllib"]):
        if target == "protocol":
            from tests.fuzz.protocol import try_one  # noqa: PLC0415  # what is imported here is watched
        else:
            from tests.fuzz.settings import try_one  # noqa: PLC0415  # see above
    atheris.Setup([sys.argv[0], *flags], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
