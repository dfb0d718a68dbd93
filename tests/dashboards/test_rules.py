"""The Prometheus rules: valid, each alert complete, with a runbook, and proven to fire and not to fire."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from tests.docs.test_docs import live_metrics
from tests.helpers.requirements import require_program
from tests.helpers.servers import PATIENCE
from triojam import Settings

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
PROMETHEUS = DASHBOARDS / "prometheus"
RUNBOOKS = (DASHBOARDS / "RUNBOOKS.md").read_text("utf-8")

SEVERITIES = {"page", "ticket", "info"}
LABEL_VALUES = re.compile(r'(triojam_\w+)\{(reason|result|errno|cause)(?:=~|!~|!=|=)"([^"]*)"')
# A metric, but not part of a recording rule's name.
OWN_METRIC = re.compile(r"(?<![\w:])triojam_\w+(?![\w:])")
PROCESS_METRIC = re.compile(r"\bprocess_\w+")
# What Prometheus itself makes of a scrape.
OF_THE_SCRAPE = {"up", "scrape_duration_seconds"}


@pytest.fixture
def promtool() -> str:
    """The program."""
    return require_program("promtool", "prometheus")


def load(path: Path) -> Any:
    """Return what a YAML file says."""
    return yaml.safe_load(path.read_text("utf-8"))


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Return the rules of a kind, `alert` or `record`, by name."""
    groups = [
        group for path in sorted((PROMETHEUS / "rules").glob("*.yml")) for group in load(path)["groups"]
    ]
    found = [rule for group in groups for rule in group["rules"] if kind in rule]
    named = {rule[kind]: rule for rule in found}
    assert len(named) == len(found), "a name is there twice"
    return named


ALERTS = rules("alert")
RECORDINGS = rules("record")
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))


def checks() -> Iterator[dict[str, Any]]:
    """Yield everything that the promtool tests say about an alert at some time."""
    for path in TESTS:
        for case in load(path)["tests"]:
            yield from case["alert_rule_test"]


def expressions() -> str:
    """Return all that the rules ask for, also in the words of an alert."""
    asked = [rule["expr"] for rule in (*ALERTS.values(), *RECORDINGS.values())]
    return "\n".join(asked + [text for alert in ALERTS.values() for text in alert["annotations"].values()])


def inputs() -> str:
    """Return the series that the promtool tests make up."""
    return "\n".join(
        series["series"] for path in TESTS for case in load(path)["tests"] for series in case["input_series"]
    )


def run(promtool: str, *arguments: str | Path) -> str:
    """Run promtool, which is to succeed; return what it said."""
    ended = subprocess.run(
        [promtool, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        timeout=3 * PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_the_configuration_is_valid(promtool: str) -> None:
    """`promtool check config` accepts the configuration and every rule, without a warning."""
    said = run(promtool, "check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(list((PROMETHEUS / 'rules').iterdir()))} rule files found" in said
    found = sum(int(number) for number in re.findall(r"(\d+) rules found", said))
    assert found == len(ALERTS) + len(RECORDINGS)
    assert not re.search("warning|duplicate|does not exist", said, re.IGNORECASE), said


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_alerts_fire_when_they_should(promtool: str, path: Path) -> None:
    """`promtool test rules` agrees with every case."""
    run(promtool, "test", "rules", path)


def test_it_scrapes_a_server_with_default_settings() -> None:
    """The static target is the default metrics listener, and the job has the name that the alerts go by."""
    (job,) = load(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    settings = Settings()
    assert job["static_configs"] == [{"targets": [f"{settings.metrics_host}:{settings.metrics_port}"]}]
    assert set(re.findall(r'job="(\w+)"', expressions())) == {job["job_name"]}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_all_that_is_needed(name: str) -> None:
    """It has a severity, a summary, a description of what is where, and a link to its section."""
    alert = ALERTS[name]
    assert re.fullmatch(r"Triojam(?:[A-Z][a-z]+)+", name)
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in SEVERITIES
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook"}
    assert all(notes.values())
    assert "{{" not in notes["summary"]  # it is the headline of all instances
    assert "$labels.instance" in notes["description"]
    assert notes["runbook"] == f"RUNBOOKS.md#{name.lower()}"


def test_a_description_has_the_value() -> None:
    """Only of what is there or not there is no value to be told."""
    silent = {name for name, alert in ALERTS.items() if "$value" not in alert["annotations"]["description"]}
    assert silent == {"TriojamDown", "TriojamClockUnsynchronized"}


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    """The sections are the alerts, in their order, each with what it means, how to see it, what to do."""
    head, *sections = re.split(r"^## ", RUNBOOKS, flags=re.MULTILINE)
    assert head.startswith("# Runbooks\n")
    assert [section.partition("\n")[0] for section in sections] == list(ALERTS)
    for section in sections:
        assert re.findall(r"^\*\*(.*?)\*\*", section, re.MULTILINE) == ["Means.", "See it.", "Do."], section


def test_the_links_of_the_runbooks() -> None:
    """They lead to sections of the page, or to files."""
    for link in re.findall(r"\]\(([^)]+)\)", RUNBOOKS):
        path, _, anchor = link.partition("#")
        assert (DASHBOARDS / path).exists(), link
        assert not anchor or anchor in {name.lower() for name in ALERTS}, link


def test_each_alert_is_proven() -> None:
    """Each is in a promtool case where it fires, and in one where it must not."""
    fires = {check["alertname"] for check in checks() if check["exp_alerts"]}
    keeps_quiet = {check["alertname"] for check in checks() if not check["exp_alerts"]}
    assert fires == set(ALERTS)
    assert keeps_quiet == set(ALERTS)


@pytest.mark.parametrize("text", [expressions(), inputs(), RUNBOOKS], ids=["rules", "tests", "runbooks"])
def test_every_metric_exists(text: str) -> None:
    """Every metric that is named is one that a server has, or a recording rule."""
    series = {sample.name for metric in live_metrics() for sample in metric.samples}
    collector = ProcessCollector(registry=CollectorRegistry())
    of_the_process = {sample.name for metric in collector.collect() for sample in metric.samples}
    assert set(OWN_METRIC.findall(text)) - series == set()
    if of_the_process:  # only Linux has them
        assert set(PROCESS_METRIC.findall(text)) - of_the_process == set()
    assert set(re.findall(r"\w+:\w+:\w+", text)) <= RECORDINGS.keys()


def test_the_tests_feed_series_of_a_scrape() -> None:
    """Every series that the promtool tests make up is one that Prometheus gets or makes."""
    names = set(re.findall(r"^\w+", inputs(), re.MULTILINE))
    assert {name for name in names if not name.startswith(("triojam_", "process_"))} == OF_THE_SCRAPE


@pytest.mark.parametrize("text", [expressions(), RUNBOOKS], ids=["rules", "runbooks"])
def test_every_label_value_exists(text: str) -> None:
    """Every reason that is asked for is one that is counted; another would never match, without a word."""
    values: dict[tuple[str, str], set[str]] = {}
    for metric in live_metrics():
        for sample in metric.samples:
            for label, value in sample.labels.items():
                values.setdefault((sample.name, label), set()).add(value)
    asked = LABEL_VALUES.findall(text)
    assert asked
    for name, label, alternatives in asked:
        assert set(alternatives.split("|")) <= values[name, label], (name, alternatives)


def test_every_recording_is_used() -> None:
    """What is recorded is asked for by another rule."""
    asked = expressions()
    assert [name for name in RECORDINGS if not re.search(rf"{name}\b", asked)] == []
