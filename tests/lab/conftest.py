"""Fixtures of the lab's tests."""

from pathlib import Path

import pytest

from tests.helpers.requirements import require_program


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
