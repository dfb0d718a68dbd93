"""The pages: each table agrees with the code, and each example runs."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
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
from tests.helpers.pages import PAGES, ROOT, block, blocks, commands, read, section, table
from tests.helpers.scrape import fetch
from triojam import Settings
from triojam.cli import ask, main, servers
from triojam.cli.flags import outputs
from triojam.cli.lab import FaultName
from triojam.core.counters import Counters
from triojam.core.protocol import Connection, Outcome, Rules
from triojam.core.reasons import Listener
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


def assert_table(page: str, heading: str, expected: list[list[str]]) -> None:
    """Compare a table of a page with the expected rows; the message has the right table."""
    rendered = "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in expected)
    assert table(page, heading) == expected, f"the table should be:\n{rendered}"


def output_of(*words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Return what Python prints with these words on its command line; it must write nothing to stderr."""
    run = subprocess.run(
        [sys.executable, *words], env=env, cwd=cwd, check=True, capture_output=True, text=True, timeout=60
    )
    assert run.stderr == ""
    return run.stdout


def as_cell(value: object) -> str:
    """Return a default as it is in the table of settings."""
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    return "`none`" if value is None else f"`{value}`" if value != "" else '`""`'


def test_settings_table_agrees_with_the_settings() -> None:
    """The table has each setting: its default, its meaning, its values, and whether SIGHUP applies it."""
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
    assert_table("docs/settings.md", "All settings", expected)


def test_check_prints_the_example(tmp_path: Path) -> None:
    """`triojam check` prints the example of docs/settings.md for its settings file."""
    (tmp_path / "triojam.toml").write_text(block("docs/settings.md", "The file", "toml"), "utf-8")
    ((command, printed),) = commands("docs/settings.md", "Check the settings")
    match = re.fullmatch(r"TRIOJAM_GRACE=20 triojam (check --config triojam\.toml .*)", command)
    assert match
    shown = output_of(
        "-m", "triojam", *match[1].split(), env=os.environ | {"TRIOJAM_GRACE": "20"}, cwd=tmp_path
    )
    assert [line.split() for line in shown.splitlines()] == [line.split() for line in printed.splitlines()]


@pytest.mark.parametrize("text", [each for page in PAGES for each in blocks("toml", read(page))])
def test_toml_examples_are_valid(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server accepts every TOML example as a settings file."""
    file = tmp_path / "triojam.toml"
    file.write_text(text, "utf-8")
    assert main.main(["check", "--config", str(file)]) == 0
    assert capsys.readouterr().out.count(f" in {file}\n") == len(tomllib.loads(text))


@pytest.mark.parametrize("text", [each for page in PAGES for each in blocks("yaml", read(page))])
def test_yaml_examples_have_the_metrics_port(text: str) -> None:
    """Every YAML example is a scrape configuration with the metrics port."""
    (job,) = yaml.safe_load(text)["scrape_configs"]
    ((target,),) = [each["targets"] for each in job["static_configs"]]
    assert target.endswith(f":{DEFAULTS['metrics_port']}")


def live_metrics() -> list[Metric]:
    """Return the metrics of a server that has just started."""
    collector = CountersCollector(
        Counters(),
        clock=lambda: 0.0,
        kernel_clock=lambda: KernelClock(synchronized=True, max_error=0, offset=0, leap_state=0),
        log_messages_dropped=lambda: 0,
        client_table_evictions=lambda: 0,
        certificate_ends=lambda: dict.fromkeys(Listener, 0.0),
        version=triojam.__version__,
    )
    return list(collector.collect())


def labels_cell(metric: Metric) -> str:
    """Return the labels of a metric and their values, without values that are versions."""
    values: dict[str, list[str]] = {}
    for sample in metric.samples:
        for label, value in sample.labels.items():
            values.setdefault(label, []).append(value)
    if metric.name.endswith("_info"):
        return ", ".join(f"`{label}`" for label in values)
    values.pop("le", None)
    return "; ".join(f"`{label}`: {', '.join(given)}" for label, given in values.items())


def test_metrics_table_agrees_with_the_metrics() -> None:
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
    assert_table("docs/metrics.md", "The metrics", expected)


@pytest.mark.parametrize("page", PAGES)
def test_named_metrics_exist(page: str) -> None:
    """Every metric that a page names, for example in a query, exists."""
    metrics = live_metrics()
    known = {sample.name for metric in metrics for sample in metric.samples} | {each.name for each in metrics}
    assert set(re.findall(r"(?<![\w:])triojam_\w+\b(?!:)", read(page))) - known == set()


async def test_http_paths_of_the_table_exist(start_plain: Start) -> None:
    """The metrics listener answers each path of the table."""
    running = await start_plain(metrics_port=0)
    assert running.server is not None
    for path, _ in table("docs/metrics.md", "Paths"):
        reply = await fetch(running.server.metrics_addresses[0], path.strip("`"), method="HEAD")
        assert reply.status == 200, path


def code(text: str) -> bytes:
    r"""Return the bytes of a cell such as "`TIME` + 3 times `x` + `\r\n`"; other words are ignored."""
    parts = re.findall(r"(?:(\d+) times )?`([^`]*)`", text)
    return b"".join(
        int(times or 1) * part.encode().decode("unicode_escape").encode() for times, part in parts
    )


def decide(cell: str) -> Outcome:
    """Do with a new connection what a cell describes."""
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
def test_protocol_table_agrees_with_the_protocol(sent: str, answer: str, then: str, counted: str) -> None:
    """Each row has the answer, the end of the connection and the counters."""
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
def test_nc_example_agrees_with_the_protocol(command: str, printed: str) -> None:
    """The example with nc has the answers of the protocol."""
    sent = re.search(r"printf '(.*)' \| nc (?:-q1 )?127\.0\.0\.1 45000", command)
    assert sent
    data = sent[1].encode().decode("unicode_escape").encode()
    outcome = Connection(Rules()).receive(data, lambda: JAM)
    shown = re.sub(r"\d\d:\d\d:\d\d", "hh:mm:ss", printed)
    assert b"".join(outcome.answers).decode() == shown.replace("\n", "\r\n")


def test_limits_in_the_readme_are_the_defaults() -> None:
    """The text of the README has the default limits."""
    text = section("README.md", "The protocol")
    assert f"at most {DEFAULTS['max_line_bytes']} bytes long" in text
    assert f"silence for {DEFAULTS['line_timeout']:g} s" in text
    assert f"{DEFAULTS['error_budget']} times `HELLO" in text
    assert ("says nothing for a minute" in text) == (DEFAULTS["idle_timeout"] == 60)


def test_readme_has_the_version_and_the_default_ports() -> None:
    """The README has this version's first line, and only the default ports."""
    text = read("README.md")
    assert f"triojam {triojam.__version__}: serving on port {DEFAULTS['port']} " in text
    assert f"http://{DEFAULTS['metrics_host']}:{DEFAULTS['metrics_port']}/" in text
    assert {int(port) for port in re.findall(r"\b45\d\d\d\b", text)} == {
        DEFAULTS["port"],
        DEFAULTS["metrics_port"],
    }


def test_embedding_example_prints_the_time() -> None:
    """The README's program prints the time, and ends without a warning."""
    program = block("README.md", "Embed it", "python")
    assert re.fullmatch(r"JAM \d\d:\d\d:\d\d\n", output_of("-W", "error", "-c", program))


def test_exit_status_tables_are_complete() -> None:
    """The tables have exactly the statuses that the commands return."""
    signalled = [128 + signal.SIGINT, 128 + signal.SIGTERM]
    expected = [0, ListenError.exit_status, ConfigurationError.exit_status, *signalled]
    assert [int(status) for status, _ in table("docs/operate.md", "Stop")] == expected
    rows = table("docs/clients.md", "Exit statuses")
    clients = {0, servers.FAILED, outputs.UNBALANCED, ask.BEYOND, servers.INTERRUPTED, servers.TERMINATED}
    assert {int(status) for status, *_ in rows} == clients | {ConfigurationError.exit_status}


def test_figures_agree_with_the_measurement() -> None:
    """The README has rows of docs/performance.md, and that page has the figures of the measurement."""
    rows = table("docs/performance.md", "Compared with other servers")
    assert all(row in rows for row in table("README.md", "How fast it is"))
    measured = read("docs/benchmarks/comparison.md")
    for shape, rate, *_ in rows:
        server = "triojam, portable" if shape.startswith("portable") else "**triojam**"
        assert f"| {server} | {rate} |" in measured, shape
    for server, memory in table("docs/performance.md", "Memory"):
        assert f"| {server} | {memory} |" in measured


def test_tables_of_fuzzers_and_faults_are_complete() -> None:
    """The tables have every fuzzer and every fault of the lab."""
    targets = [row[0].strip("`") for row in table("docs/testing.md", "Fuzzing")]
    assert targets == ["connection", *GUIDED]
    faults = [row[0].strip("`") for row in table("dashboards/README.md", "The lab")]
    assert faults == list(get_args(FaultName))


def test_changelog_has_this_version() -> None:
    """The newest heading of the changelog is the version of the package."""
    newest = re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)
    assert newest
    assert newest[1] == triojam.__version__


def test_console_script_runs_the_package() -> None:
    """The `triojam` command of pyproject.toml runs the same function as `python -m triojam`."""
    assert resolve_name(PYPROJECT["project"]["scripts"]["triojam"]) is triojam.__main__.main


def test_table_of_dependencies_is_complete() -> None:
    """docs/ARCHITECTURE.md has exactly the run-time dependencies of pyproject.toml, in the same order."""
    asked = [re.split(r"[^\w-]", each)[0] for each in PYPROJECT["project"]["dependencies"]]
    assert [row[0].strip("`") for row in table("docs/ARCHITECTURE.md", "Dependencies")] == asked


def test_dependencies_are_pinned() -> None:
    """Every package that pyproject.toml names has a version in constraints.txt."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = [*PYPROJECT["project"]["dependencies"], *extras["test"], *extras["bench"], *extras["dev"]]
    names = {re.split(r"[^\w-]", each)[0] for each in asked} - {"triojam"}
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==(\d+!)?[\w.]+", line)] == []
    assert names - {line.partition("==")[0] for line in lines} == set()
