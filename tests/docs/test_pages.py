"""The pages: their links lead somewhere, and the tests and flags that they name exist."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.pages import PAGES, ROOT, anchors, links, read, table, typed
from triojam import Settings
from triojam.cli import main

COMMANDS = (*main.CLIENT_COMMANDS, main.LAB_COMMAND, "check")
README_LINES = 200


@cache
def help_of(*words: str) -> str:
    """Return what `python -m WORDS --help` prints."""
    run = subprocess.run(
        [sys.executable, "-m", *words, "--help"],
        env=os.environ | {"COLUMNS": "300"},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return run.stdout


def flags_of(*words: str) -> set[str]:
    """Return the flags of a command."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_of(*words)))


@pytest.mark.parametrize("setting", [each.name for each in fields(Settings)])
def test_help_shows(setting: str) -> None:
    """`--help` shows the flag and the variable of every setting."""
    assert "--" + setting.replace("_", "-") in flags_of("triojam")
    assert re.search(rf"\bTRIOJAM_{setting.upper()}\b", help_of("triojam"))


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page: str) -> None:
    """Every flag of a command that a page tells its reader to type is a flag of that command."""
    for words in typed(page):
        used = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        name = Path(words[0]).name if words else ""
        if name == "triojam":
            command = [word for word in words[1:2] if word in COMMANDS]
            assert used <= flags_of("triojam", *command) | {"--config", "--help"}, words
        elif name == "python" and words[1] == "-m" and used:
            assert used <= flags_of(words[2]), words


def test_flags_in_prose_exist() -> None:
    """Every flag that the README or a page of docs/ names by itself is a flag of some command."""
    known = set().union({"--config"}, *(flags_of("triojam", each) for each in COMMANDS))
    for page in ["README.md", *(each for each in PAGES if each.startswith("docs/"))]:
        assert set(re.findall(r"`(--[a-z][a-z-]*)", read(page))) <= known, page


def test_length_of_the_readme() -> None:
    """The README stays short; the rest has pages of its own."""
    assert len(read("README.md").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_exist(page: str) -> None:
    """Each test that a page names as proof exists."""
    for file, function in re.findall(r"`(test_\w+)::(test_\w+)`", read(page)):
        sources = [path.read_text("utf-8") for path in (ROOT / "tests").rglob(f"{file}.py")]
        assert any(f"def {function}(" in source for source in sources), f"{file}::{function}"


def test_each_fault_has_a_test() -> None:
    """Each row of docs/robustness.md names tests, and nothing else, as its proof."""
    for *_, proof in table("docs/robustness.md", "Faults and promises"):
        assert re.fullmatch(r"`test_\w+::test_\w+`(, `test_\w+::test_\w+`)*", proof), proof


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every link leads to a file or a folder, and its anchor to a heading."""
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
