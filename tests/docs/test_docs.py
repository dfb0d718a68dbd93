"""The pages: each table is held to the code, and each example is run or checked."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.metrics_core import Metric

import triojam
import triojam.__main__
from tests.conftest import Start
from tests.fuzz.__main__ import GUIDED
from tests.helpers.pages import (
    PAGES,
    ROOT,
    block,
    blocks,
    commands,
    read,
    section,
    table,
)
from tests.helpers.scrape import fetch
from triojam import Settings
from triojam.cli import client, main
from triojam.cli.lab import FaultName
from triojam.core.counters import Counters
from triojam.core.protocol import Connection, Outcome, Rules
from triojam.errors import ConfigurationError, ListenError
from triojam.web.kernel_clock import KernelClock
from triojam.web.metrics import CountersCollector

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(Settings)}
JAM = b"JAM hh:mm:ss\r\n"


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("TRIOJAM_")]:
        monkeypatch.delenv(variable)


def as_cell(value: object) -> str:
    """Return a default as the table of settings shows it."""
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    return "`none`" if value is None else f"`{value}`" if value != "" else '`""`'


def test_settings_table() -> None:
    """The table has each setting: its default, what it does, what it takes, whether SIGHUP applies it."""
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
    assert table("docs/settings.md", "All settings") == expected, f"the table should be:\n{rendered}"


def test_check_example(tmp_path: Path) -> None:
    """`triojam check` prints what docs/settings.md shows for its settings file."""
    (tmp_path / "triojam.toml").write_text(block("docs/settings.md", "The file", "toml"), "utf-8")
    ((command, printed),) = commands("docs/settings.md", "Check the settings")
    match = re.fullmatch(r"TRIOJAM_GRACE=20 triojam (check --config triojam\.toml .*)", command)
    assert match
    run = subprocess.run(
        [sys.executable, "-m", "triojam", *match[1].split()],
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


@pytest.mark.parametrize("text", [each for page in PAGES for each in blocks("toml", read(page))])
def test_toml_examples(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every TOML example is a settings file that the server takes."""
    file = tmp_path / "triojam.toml"
    file.write_text(text, "utf-8")
    assert main.main(["check", "--config", str(file)]) == 0
    assert capsys.readouterr().out.count(f" in {file}\n") == len(tomllib.loads(text))


@pytest.mark.parametrize("text", [each for page in PAGES for each in blocks("yaml", read(page))])
def test_yaml_examples(text: str) -> None:
    """Every YAML example is a scrape configuration with the port of the metrics."""
    (job,) = yaml.safe_load(text)["scrape_configs"]
    ((target,),) = [each["targets"] for each in job["static_configs"]]
    assert target.endswith(f":{DEFAULTS['metrics_port']}")


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
    """The table has every metric with its type, its labels, their values, and its help text."""
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
    assert table("docs/metrics.md", "The metrics") == expected, f"the table should be:\n{rendered}"


@pytest.mark.parametrize("page", PAGES)
def test_named_metrics_exist(page: str) -> None:
    """Every metric that a page names, in a query for example, is one that a server has."""
    metrics = live_metrics()
    known = {sample.name for metric in metrics for sample in metric.samples} | {each.name for each in metrics}
    assert set(re.findall(r"(?<![\w:])triojam_\w+\b(?!:)", read(page))) - known == set()


async def test_http_paths(start_plain: Start) -> None:
    """The metrics listener answers each path of the table."""
    running = await start_plain(metrics_port=0)
    assert running.server is not None
    for path, _ in table("docs/metrics.md", "Paths"):
        reply = await fetch(running.server.metrics_addresses[0], path.strip("`"), method="HEAD")
        assert reply.status == 200, path


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


@pytest.mark.parametrize(("sent", "answer", "then", "counted"), table("README.md", "The protocol"))
def test_protocol_table(sent: str, answer: str, then: str, counted: str) -> None:
    """A row of the protocol table says what the protocol does."""
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


@pytest.mark.parametrize(("command", "printed"), list(commands("README.md", "Talk to it")))
def test_nc_exchange(command: str, printed: str) -> None:
    """The exchange with nc is what the protocol answers."""
    sent = re.search(r"printf '(.*)' \| nc (?:-q1 )?127\.0\.0\.1 45000", command)
    assert sent
    data = sent[1].encode().decode("unicode_escape").encode()
    outcome = Connection(Rules()).receive(data, lambda: JAM)
    shown = re.sub(r"\d\d:\d\d:\d\d", "hh:mm:ss", printed)
    assert b"".join(outcome.answers).decode() == shown.replace("\n", "\r\n")


def test_defaults_in_prose() -> None:
    """The limits that the README states are the defaults."""
    text = section("README.md", "The protocol")
    assert f"at most {DEFAULTS['max_line_bytes']} bytes long" in text
    assert f"silence for {DEFAULTS['line_timeout']:g} s" in text
    assert f"{DEFAULTS['error_budget']} times `HELLO" in text
    assert ("says nothing for a minute" in text) == (DEFAULTS["idle_timeout"] == 60)


def test_first_line_and_ports() -> None:
    """The README shows this version's first line, and no other ports than the default ones."""
    text = read("README.md")
    assert f"triojam {triojam.__version__}: serving on port {DEFAULTS['port']} " in text
    assert f"http://{DEFAULTS['metrics_host']}:{DEFAULTS['metrics_port']}/" in text
    assert {int(port) for port in re.findall(r"\b45\d\d\d\b", text)} == {
        DEFAULTS["port"],
        DEFAULTS["metrics_port"],
    }


def test_embedding_example() -> None:
    """The README's program runs, prints the time, and ends."""
    program = block("README.md", "Embed it", "python")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.fullmatch(r"JAM \d\d:\d\d:\d\d\n", run.stdout)
    assert run.stderr == ""


def test_exit_statuses() -> None:
    """The tables of exit statuses have the statuses that the commands return."""
    signalled = [128 + signal.SIGINT, 128 + signal.SIGTERM]
    expected = [0, ListenError.exit_status, ConfigurationError.exit_status, *signalled]
    assert [int(status) for status, _ in table("docs/operate.md", "Stop")] == expected
    rows = table("docs/clients.md", "Exit statuses")
    clients = {0, client.FAILED, client.UNBALANCED, client.INTERRUPTED}
    assert {int(status) for status, *_ in rows} == clients | {ConfigurationError.exit_status}


def test_figures_agree() -> None:
    """The README's speeds are rows of docs/performance.md, whose figures are those of the measurement."""
    rows = table("docs/performance.md", "Compared with other servers")
    assert all(row in rows for row in table("README.md", "How fast it is"))
    measured = read("docs/benchmarks/comparison.md")
    for shape, rate, *_ in rows:
        server = "triojam, portable" if shape.startswith("portable") else "**triojam**"
        assert f"| {server} | {rate} |" in measured, shape
    for server, memory in table("docs/performance.md", "Memory"):
        assert f"| {server} | {memory} |" in measured


def test_names_in_tables() -> None:
    """The tables of fuzzers and of the lab's faults have each of them."""
    targets = [row[0].strip("`") for row in table("docs/testing.md", "Fuzzing")]
    assert targets == ["connection", *GUIDED]
    faults = [row[0].strip("`") for row in table("dashboards/README.md", "The lab")]
    assert faults == list(get_args(FaultName))


def test_changelog_is_of_this_version() -> None:
    """The newest heading of the changelog is the version of the package."""
    newest = re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
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
