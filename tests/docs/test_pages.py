"""The pages: the links, tests and flags in them exist."""

import os
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.test_docs import output_of
from tests.helpers.pages import PAGES, ROOT, anchors, links, read, table, typed
from triojam.cli import main

COMMANDS = (*main.CLIENT_COMMANDS, main.LAB_COMMAND, "check", "health")
README_LINES = 200


@cache
def flags_of(*words: str) -> set[str]:
    """Return the flags of a command, from its help."""
    text = output_of("-m", *words, "--help", env=os.environ | {"COLUMNS": "300"}, cwd=ROOT)
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page: str) -> None:
    """Every flag in a command line of a page is a flag of that command."""
    for words in typed(page):
        used = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        name = Path(words[0]).name if words else ""
        if name == "triojam":
            command = [word for word in words[1:2] if word in COMMANDS]
            assert used <= flags_of("triojam", *command) | {"--config", "--help"}, words
        elif name == "python" and words[1] == "-m" and used:
            assert used <= flags_of(words[2]), words


def test_flags_in_prose_exist() -> None:
    """Every flag in the text of the README or of docs/ is a flag of some command."""
    known = set().union({"--config"}, *(flags_of("triojam", each) for each in COMMANDS))
    for page in ["README.md", *(each for each in PAGES if each.startswith("docs/"))]:
        assert set(re.findall(r"`(--[a-z][a-z-]*)", read(page))) <= known, page


def test_readme_is_short() -> None:
    """The README has at most 200 lines; other pages have the rest."""
    assert len(read("README.md").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_exist(page: str) -> None:
    """Each test that a page names exists."""
    for file, function in re.findall(r"`(test_\w+)::(test_\w+)`", read(page)):
        sources = [path.read_text("utf-8") for path in (ROOT / "tests").rglob(f"{file}.py")]
        assert any(f"def {function}(" in source for source in sources), f"{file}::{function}"


def test_each_fault_has_a_test() -> None:
    """Each row of docs/robustness.md names one or more tests."""
    for *_, proof in table("docs/robustness.md", "Faults and promises"):
        assert re.fullmatch(r"`test_\w+::test_\w+`(, `test_\w+::test_\w+`)*", proof), proof


@pytest.mark.parametrize("page", PAGES)
def test_links_have_targets(page: str) -> None:
    """The target of every link is a file or a folder, and that of its anchor is a heading."""
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
