"""What the README and its neighbours say, held to what is so."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric

import triojam
import triojam.__main__
from triojam import Settings
from triojam.cli import client, main
from triojam.core.counters import Counters
from triojam.core.protocol import Connection, Outcome, Rules
from triojam.web.kernel_clock import KernelClock
from triojam.web.metrics import CountersCollector

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
JAM = b"JAM hh:mm:ss\r\n"


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("TRIOJAM_")]:
        monkeypatch.delenv(variable)


def section(heading: str) -> str:
    """Return the text of one second-level section of the README."""
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    return str(text)


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table of a section, without its head."""
    (first, *_) = re.findall(r"(?:^\|.*\n)+", section(heading), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in first.splitlines()[2:]]


def block(language: str, *, within: str) -> str:
    """Return the one fenced block of this language in a section."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", section(within), re.DOTALL | re.MULTILINE)
    return str(text)


def commands(heading: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a section's console block, and what it is said to print."""
    for text in block("console", within=heading).split("$ ")[1:]:
        command, _, output = text.partition("\n")
        yield command, output


def as_cell(value: object) -> str:
    """Return a default as the README shows it."""
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    return "`none`" if value is None else f"`{value}`" if value != "" else '`""`'


def test_settings_table() -> None:
    """The README lists each setting: its default, what it does, what it takes, whether SIGHUP applies it."""
    expected = [
        [
            f"`{each.name}`",
            as_cell(each.default),
            each.metadata["help"],
            each.metadata["takes"],
            "applies" if each.metadata["reloads"] else "restart",
        ]
        for each in fields(Settings)
    ]
    rendered = "\n".join(f"| {' | '.join(row)} |" for row in expected)
    assert table("Settings") == expected, f"the table is to be:\n{rendered}"


@pytest.mark.parametrize("setting", [each.name for each in fields(Settings)])
def test_help_shows(
    setting: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--help` shows the flag and the variable of every setting."""
    monkeypatch.setenv("COLUMNS", "300")
    assert main.main(["--help"]) == 0
    words = re.findall(r"[\w-]+", capsys.readouterr().out)
    assert "--" + setting.replace("_", "-") in words
    assert "TRIOJAM_" + setting.upper() in words


def test_file_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's settings file and its `triojam check` give what is printed there."""
    file = tmp_path / "triojam.toml"
    file.write_text(block("toml", within="Settings"), "utf-8")
    ((command, printed),) = commands("Settings")
    match = re.fullmatch(r"TRIOJAM_GRACE=20 \.venv/bin/triojam check --config triojam\.toml (.*)", command)
    assert match
    run = subprocess.run(
        [sys.executable, "-m", "triojam", "check", "--config", "triojam.toml", *match[1].split()],
        env=os.environ | {"TRIOJAM_GRACE": "20"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [line.split() for line in run.stdout.splitlines()] == [
        line.split() for line in printed.splitlines()
    ]


def live_metrics() -> list[Metric]:
    """Collect what a server that has just started shows."""
    collector = CountersCollector(
        Counters(),
        clock=lambda: 0.0,
        kernel_clock=lambda: KernelClock(synchronized=True, max_error=0, offset=0, leap_state=0),
        log_messages_dropped=lambda: 0,
        client_table_evictions=lambda: 0,
        version=triojam.__version__,
    )
    return list(collector.collect())


def labels_cell(metric: Metric) -> str:
    """Return the labels of a metric and their values, but not those that say what is running."""
    values: dict[str, list[str]] = {}
    for sample in metric.samples:
        for label, value in sample.labels.items():
            values.setdefault(label, []).append(value)
    if metric.name.endswith("_info"):
        return ", ".join(f"`{label}`" for label in values)
    values.pop("le", None)
    return "; ".join(f"`{label}`: {', '.join(given)}" for label, given in values.items())


def test_metrics_table() -> None:
    """The README lists every metric with its type, its labels, their values, and its help text."""
    expected = [
        [
            f"`{metric.name}{'_total' if metric.type == 'counter' else ''}`",
            metric.type,
            labels_cell(metric),
            metric.documentation,
        ]
        for metric in live_metrics()
    ]
    rendered = "\n".join(f"| {' | '.join(row)} |" for row in expected)
    assert table("Metrics") == expected, f"the table is to be:\n{rendered}"


def test_queries_ask_for_what_there_is() -> None:
    """Every series that the README's queries name is one that a server has."""
    series = {sample.name for metric in live_metrics() for sample in metric.samples}
    _, _, queries = section("Metrics").partition("**The accounts balance.**")
    queried = set(re.findall(r"\btriojam_\w+", queries + section("Stop it")))
    assert queried - series == set()
    assert len(queried) > 8


def code(text: str) -> bytes:
    r"""Return the bytes of a cell such as "`TIME` + 3 times `x` + `\r\n`"; other words say nothing."""
    parts = re.findall(r"(?:(\d+) times )?`([^`]*)`", text)
    return b"".join(
        int(times or 1) * part.encode().decode("unicode_escape").encode() for times, part in parts
    )


def decide(cell: str) -> Outcome:
    """Feed what a client is said to do to a fresh connection."""
    connection = Connection(Rules())
    outcome = connection.receive(code(cell), lambda: JAM)
    if "silence" in cell:
        outcome = connection.line_timeout()
    elif "end of stream" in cell:
        outcome = connection.end_of_stream()
    elif "server stops" in cell:
        outcome = connection.drain()
    return outcome


@pytest.mark.parametrize(("sent", "answer", "then", "counted"), table("The protocol"))
def test_protocol_table(sent: str, answer: str, then: str, counted: str) -> None:
    """A row of the README's protocol table says what the protocol does."""
    outcome = decide(sent)
    assert b"".join(outcome.answers) == (b"" if answer == "none" else code(answer))
    assert (outcome.end is not None) == {"closed": True, "stays open": False}[then]
    words = counted.split(", ")
    assert (outcome.requests == 0) == ("no request" in words)
    assert (outcome.requests > len(outcome.rejected)) == ("response" in words)
    rejections = {f"rejected `{reason}`" for reason, _ in outcome.rejected}
    assert rejections == {word for word in words if word.startswith("rejected")}
    ends = {word for word in words if word.startswith("disconnect")}
    assert ends <= {f"disconnect `{outcome.end}`"}


@pytest.mark.parametrize(("command", "printed"), list(commands("Talk to it")))
def test_nc_exchange(command: str, printed: str) -> None:
    """The README's exchange with nc is what the protocol answers."""
    sent = re.search(r"(?:printf '(.*)'|echo (\w+)) \| nc -?\w* ?127\.0\.0\.1 45000", command)
    assert sent
    data = sent[1].encode().decode("unicode_escape") if sent[1] else f"{sent[2]}\n"
    outcome = Connection(Rules()).receive(data.encode(), lambda: JAM)
    shown = re.sub(r"\d\d:\d\d:\d\d", "hh:mm:ss", printed)
    assert b"".join(outcome.answers).decode() == shown.replace("\n", "\r\n")


def test_defaults_in_prose() -> None:
    """The limits that the README's protocol section states are the defaults."""
    defaults: dict[str, Any] = {each.name: each.default for each in fields(Settings)}
    text = section("The protocol")
    assert f"at most {defaults['max_line_bytes']} bytes long" in text
    assert f"silence for {defaults['line_timeout']:g} s" in text
    assert f"{defaults['error_budget']} times `HELLO" in text
    assert ("says nothing for a minute" in text) == (defaults["idle_timeout"] == 60)


def test_ports() -> None:
    """The README's ports are the default ones, wherever they stand."""
    defaults: dict[str, Any] = {each.name: each.default for each in fields(Settings)}
    target = f'targets: ["{defaults["metrics_host"]}:{defaults["metrics_port"]}"]'
    assert target in block("yaml", within="Scrape it")
    assert set(re.findall(r"\b45\d\d\d\b", README)) == {
        str(defaults["port"]),
        str(defaults["metrics_port"]),
    }


def test_embedding_example() -> None:
    """The README's program runs, prints the time, and ends."""
    program = block("python", within="Embed it")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.fullmatch(r"JAM \d\d:\d\d:\d\d\n", run.stdout)
    assert run.stderr == ""


def test_changelog_is_of_this_version() -> None:
    """The newest heading of the changelog is the version of the package."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest
    assert newest[1] == triojam.__version__


def test_console_script() -> None:
    """The `triojam` command of pyproject.toml is what `python -m triojam` runs."""
    assert resolve_name(PYPROJECT["project"]["scripts"]["triojam"]) is triojam.__main__.main


def test_dependencies_are_pinned() -> None:
    """Every package that pyproject.toml asks for by name has a version in constraints.txt."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = [*PYPROJECT["project"]["dependencies"], *extras["test"], *extras["bench"], *extras["dev"]]
    names = {re.split(r"[^\w-]", each)[0] for each in asked} - {"triojam"}
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==(\d+!)?[\w.]+", line)] == []
    assert names - {line.partition("==")[0] for line in lines} == set()


@pytest.mark.parametrize("page", ["reliability.md", "threat-model.md"])
def test_the_tests_that_are_named_exist(page: str) -> None:
    """Each test that a page of the docs gives as its proof is there."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    named = re.findall(r"`(test_\w+)::(test_\w+)`", text)
    assert named
    for file, function in named:
        source = (ROOT / "tests" / f"{file}.py").read_text("utf-8")
        assert f"def {function}(" in source, f"{page} names {file}::{function}"


def test_links_lead_somewhere() -> None:
    """Every relative link in the project's pages leads to a file, and its anchor to a heading."""
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "dashboards" / "README.md"]
    for page in [*pages, *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text("utf-8")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.is_file(), link
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
                assert anchor in {each.lower().replace(",", "").replace(" ", "-") for each in headings}, link


def test_the_flags_of_the_clients(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every flag that the README has for a client is one of its own, in the recordings, too."""
    monkeypatch.setenv("COLUMNS", "300")
    known = {}
    for command in main.CLIENT_COMMANDS:
        assert main.main([command, "--help"]) == 0
        known[command] = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    text = section("Ask, watch, load")
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert said <= set().union({"--help"}, *known.values())
    for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
        program, command, *words = line.split()
        assert program == "triojam"
        assert {word for word in words if word.startswith("--")} <= known[command]


def test_the_exit_statuses_of_load() -> None:
    """The README's table has the statuses that the command returns."""
    rows = re.findall(r"^\| (\d+) \|", section("Ask, watch, load"), re.MULTILINE)
    statuses = (0, client.FAILED, client.UNBALANCED, client.INTERRUPTED)
    assert [int(row) for row in rows] == list(statuses)


def test_faults_name_their_tests() -> None:
    """Each row of docs/faults.md names tests, each of which there is."""
    page = (ROOT / "docs" / "faults.md").read_text("utf-8")
    rows = re.findall(r"^\| \d+ \|.*\|$", page, re.MULTILINE)
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/\w+\.py)::(test_\w+)`", row)
        assert len(named) == row.count("::") > 0
        for file, test in named:
            assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)
