"""System programs that a few tests need and some machines do not have."""

import os
import shutil
from typing import NoReturn

import pytest


def require_program(name: str, package: str) -> str:
    """Return the path of a program. Without it the test is skipped; with CI=true it fails.

    package: the Debian package of the program.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")  # not in every user's PATH
    if path is None:
        cannot_run(f"needs the program {name}, of the Debian package {package}")
    return path


def cannot_run(reason: str) -> NoReturn:
    """End a test that this machine cannot run: it is skipped; with CI=true it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
