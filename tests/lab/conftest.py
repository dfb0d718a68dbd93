"""Fixtures of the lab's tests."""

from pathlib import Path

import pytest

from tests.helpers.requirements import require_program
from tests.lab.labs import QUIET, fake


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Return the folder in which a lab makes its temporary directory."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def programs() -> None:
    """Skip the test if a program that the lab needs is missing."""
    require_program("prometheus", "prometheus")
    require_program("prometheus-alertmanager", "prometheus-alertmanager")


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """Return an empty folder for fake programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def fake_programs(fakes: Path) -> str:
    """Return a PATH with programs that start quickly and do nothing."""
    fake(fakes, QUIET, "prometheus", "prometheus-alertmanager")
    return f"{fakes}:/usr/bin:/bin"
