"""The source agrees with docs/ARCHITECTURE.md: imports, circles, sizes of folders and modules."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.docs.test_docs import output_of
from tests.helpers.pages import ROOT, table

PACKAGE = ROOT / "src" / "triojam"
PAGE, SECTION = "docs/ARCHITECTURE.md", "Folders and imports"
FILES_A_FOLDER = 10
LINES_A_MODULE = 300
# The docstring of a longer module gives the reason.
REASON = "One module"
# `core` has no I/O and no clock. From `socket` it has only the conversion of addresses.
CORE_MAY_IMPORT = {
    "bisect", "collections", "dataclasses", "enum", "functools.lru_cache", "ipaddress", "re",
    "socket.AF_INET", "socket.AF_INET6", "socket.if_indextoname", "socket.inet_ntop", "socket.inet_pton",
    "typing",
}  # fmt: skip


def names_in(cell: str) -> set[str]:
    """Return the names in backquotes in a cell."""
    return set(re.findall(r"`([\w.]+)`", cell))


def read_imports(source: str) -> set[str]:
    """Return the full names of all imports of a module, also inside its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_name(path: Path) -> str:
    """Return the name of a module within the package; an `__init__` has the name of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {name: read_imports(path.read_text("utf-8")) for name, path in MODULES.items()}
ROWS = {row[0].strip("`"): row for row in table(PAGE, SECTION)}
EXCEPTIONS = {row[0].strip("`"): names_in(row[1]) for row in table(PAGE, SECTION, 1)}


def own_imports(module: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports."""
    for name in IMPORTS[module]:
        top, _, rest = name.partition(".")
        if top == "triojam":
            yield rest if rest in MODULES else rest.rpartition(".")[0] or "__init__"


def libraries(module: str) -> set[str]:
    """Return the libraries that a module imports."""
    return {name.split(".")[0] for name in IMPORTS[module]} - sys.stdlib_module_names - {"triojam"}


def test_every_folder_has_a_row() -> None:
    """The page lists exactly the existing packages and modules at the top."""
    assert set(ROWS) == {name.split(".")[0] for name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_allowed(module: str) -> None:
    """A module imports only its own folder and the names in its row or its exception."""
    top = module.split(".", maxsplit=1)[0]
    allowed = {top} | names_in(ROWS[top][2]) | EXCEPTIONS.get(module, set())
    assert {name.split(".")[0] for name in own_imports(module)} - allowed == set()
    assert libraries(module) - set(re.findall(r"\w+", ROWS[top][3])) == set()


def test_rows_list_only_used_imports() -> None:
    """Each import and each library in a row or an exception is used."""
    for top, row in ROWS.items():
        members = [name for name in MODULES if name.split(".")[0] == top]
        used = {name.split(".")[0] for each in members for name in own_imports(each)}
        assert names_in(row[2]) - used == set(), top
        assert set(re.findall(r"\w+", row[3])) - set().union(*map(libraries, members)) == set(), top
    for module, also in EXCEPTIONS.items():
        assert also - {name.split(".")[0] for name in own_imports(module)} == set(), module


def test_imports_have_no_circle() -> None:
    """No module imports itself, directly or through other modules."""
    graph = {module: set(own_imports(module)) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail(f"a circle: {exc.args[1]}")


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "core"])
def test_core_has_no_io_and_no_clock(module: str) -> None:
    """`core` imports itself, and only parts of the standard library that do not wait or read a clock."""
    outside = {name for name in IMPORTS[module] if not name.startswith("triojam.core.")}
    assert {name for name in outside if not {name, name.split(".")[0]} & CORE_MAY_IMPORT} == set()


@pytest.mark.parametrize("module", ["errors", "version"])
def test_errors_and_version_import_nothing_of_the_package(module: str) -> None:
    """Any module can import both without a circle."""
    assert list(own_imports(module)) == []


def test_folders_are_small() -> None:
    """No folder has more than ten files besides `__init__.py`."""
    for folder in {path.parent for path in MODULES.values()}:
        files = [each for each in folder.iterdir() if each.is_file() and each.name != "__init__.py"]
        assert len(files) <= FILES_A_FOLDER, folder


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_or_give_a_reason(module: str) -> None:
    """A module has at most 300 lines, or its docstring gives the reason."""
    text = MODULES[module].read_text("utf-8")
    assert text.count("\n") <= LINES_A_MODULE or REASON in (ast.get_docstring(ast.parse(text)) or "")


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_packages_have_only_a_docstring(package: str) -> None:
    """The `__init__` of a package below the top is a docstring without code."""
    body = ast.parse(MODULES[package].read_text("utf-8")).body
    assert ast.get_docstring(ast.Module(body, []))
    assert len(body) == 1 or package == "__init__"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import triojam.web", {"triojam.web"}),
        ("from triojam import web, server", {"triojam.web", "triojam.server"}),
        ("def f():\n    from triojam.web import serve", {"triojam.web.serve"}),
        ("import h11._events, json", {"h11._events", "json"}),
    ],
)
def test_read_imports_finds_every_form_of_import(source: str, names: set[str]) -> None:
    """`read_imports` finds each form of import, at any place."""
    assert read_imports(source) == names


def test_import_has_no_side_effects() -> None:
    """`import triojam` starts no thread, changes no signal, log or metric, and loads no web server."""
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
    "loaded": sorted({"cyclopts", "h11"} & set(sys.modules)),
}))
"""
    assert json.loads(output_of("-c", script)) == {"unchanged": True, "loaded": []}
