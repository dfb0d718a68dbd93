"""Who imports whom, held to the table in docs/ARCHITECTURE.md."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "triojam"
PAGE = ROOT / "docs" / "ARCHITECTURE.md"


class Imports(NamedTuple):
    """What a module imports: modules of the package, libraries, and modules of the standard library."""

    own: frozenset[str]
    libraries: frozenset[str]
    standard: frozenset[str]


class Row(NamedTuple):
    """What a module may import."""

    own: frozenset[str]
    libraries: frozenset[str]


def read_page() -> dict[str, Row]:
    """Return the rows of the page's table, from the top layer down."""
    rows: dict[str, Row] = {}
    for line in PAGE.read_text("utf-8").splitlines():
        if match := re.fullmatch(r"\| `(\w+)` \| [^|]+ \| ([^|]*)\| ([^|]*)\|", line):
            module, own, libraries = match.groups()
            assert module not in rows, f"{module} has two rows"
            rows[module] = Row(
                frozenset(re.findall(r"`(\w+)`", own)), frozenset(re.findall(r"\w+", libraries))
            )
    return rows


def read_imports(source: str) -> Imports:
    """Return everything that a module imports anywhere, also inside its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            if node.module == "triojam":
                names |= {f"triojam.{alias.name}" for alias in node.names}
            else:
                names.add(str(node.module))
    own = {name.removeprefix("triojam.") for name in names if name.split(".")[0] == "triojam"}
    foreign = {name.split(".")[0] for name in names} - {"triojam"}
    standard = foreign & sys.stdlib_module_names
    return Imports(frozenset(own), frozenset(foreign - standard), frozenset(standard))


ROWS = read_page()
MODULES = {path.stem: read_imports(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_has_a_row() -> None:
    """The page lists exactly the modules that there are."""
    assert set(ROWS) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_listed(module: str) -> None:
    """A module imports nothing of the package, and no library, that its row does not list."""
    allowed = ROWS.get(module, Row(frozenset(), frozenset()))
    assert sorted(MODULES[module].own - allowed.own) == []
    assert sorted(MODULES[module].libraries - allowed.libraries) == []


@pytest.mark.parametrize("module", ROWS)
def test_imports_go_down(module: str) -> None:
    """A row lists only modules that stand below it, so that no two can import each other."""
    order = list(ROWS)
    assert ROWS[module].own <= set(order[order.index(module) + 1 :])


def test_protocol_has_no_means_of_io_or_time() -> None:
    """The protocol's imports give it neither a clock nor a socket."""
    assert MODULES["protocol"].standard <= {"collections", "dataclasses", "re"}


@pytest.mark.parametrize(
    ("source", "own", "libraries"),
    [
        ("import triojam.web", {"web"}, set()),
        ("from triojam import web, app", {"web", "app"}, set()),
        ("def f():\n    from triojam.web import serve", {"web"}, set()),
        ("import h11._events, json", set(), {"h11"}),
    ],
)
def test_every_spelling_of_an_import_is_read(source: str, own: set[str], libraries: set[str]) -> None:
    """An import is seen whatever its spelling, and wherever it stands."""
    imports = read_imports(source)
    assert imports.own == own
    assert imports.libraries == libraries


def test_importing_the_package_does_nothing_else() -> None:
    """`import triojam` starts no thread, touches no signal, log or metric, and loads no web server."""
    script = """
import json, logging, signal, sys, threading
import prometheus_client
def state():
    return [
        threading.active_count(),
        [str(signal.getsignal(each)) for each in sorted(signal.valid_signals())],
        [str(each) for each in logging.root.handlers + logging.getLogger("triojam").handlers],
        sorted(prometheus_client.REGISTRY._names_to_collectors),
    ]
before = state()
import triojam
print(json.dumps({
    "unchanged": state() == before,
    "loaded": sorted({"cyclopts", "hypercorn", "starlette"} & set(sys.modules)),
}))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert json.loads(run.stdout) == {"unchanged": True, "loaded": []}
    assert run.stderr == ""
