"""Reads the pages of the project: sections, tables, blocks, examples, links and anchors."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ["", "docs", "docs/benchmarks", "deploy", "dashboards", "benchmarks"]
PAGES = [page.relative_to(ROOT).as_posix() for each in FOLDERS for page in sorted((ROOT / each).glob("*.md"))]
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
# Operators between two commands on a line.
JOINTS = re.compile(r"\s(?:\||&&|;)\s")


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text("utf-8")


def section(page: str, heading: str) -> str:
    """Return the text of one second-level section of a page."""
    (text,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", read(page), re.DOTALL | re.MULTILINE)
    return str(text)


def table(page: str, heading: str, place: int = 0) -> list[list[str]]:
    """Return the cells of a table of a section without its header, by default of the first table."""
    found = re.findall(r"(?:^\|.*\n)+", section(page, heading), re.MULTILINE)[place]
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in found.splitlines()[2:]]


def blocks(language: str, text: str) -> list[str]:
    """Return every fenced block of this language in a text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def block(page: str, heading: str, language: str) -> str:
    """Return the one fenced block of this language in a section."""
    (text,) = blocks(language, section(page, heading))
    return text


def commands(page: str, heading: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a section's console blocks, and the output that the page shows."""
    for text in blocks("console", section(page, heading)):
        for example in text.split("$ ")[1:]:
            command, _, output = example.partition("\n")
            yield command, output


def typed(page: str) -> Iterator[list[str]]:
    """Yield the words of each command on a page, in blocks and in lines."""
    text = read(page)
    lines = [line for each in blocks("sh", text) for line in each.splitlines()]
    lines += [line[2:] for each in blocks("console", text) for line in each.splitlines() if line[:2] == "$ "]
    lines += re.findall(
        r"`((?:triojam|python -m) [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    )
    for line in lines:
        for command in JOINTS.split(line):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            yield words


def links(page: str) -> list[str]:
    """Return every link of a page to another file of the project."""
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", read(page))
    return [link for pair in found for link in pair if link and not re.match(r"https?:", link)]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
