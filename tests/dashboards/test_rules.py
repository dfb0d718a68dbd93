"""The Prometheus rules: valid, complete, with runbooks, and tested to fire and not to fire."""

import os
import re
import shlex
import shutil
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
from triojam.web.page import problems

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
PROMETHEUS = DASHBOARDS / "prometheus"
RUNBOOKS = (DASHBOARDS / "RUNBOOKS.md").read_text("utf-8")

SEVERITIES = {"page", "ticket", "info"}
LABEL_VALUES = re.compile(r'(triojam_\w+)\{(reason|result|errno|cause)(?:=~|!~|!=|=)"([^"]*)"')
# The name of a metric, not a part of a recording rule's name.
OWN_METRIC = re.compile(r"(?<![\w:])triojam_\w+(?![\w:])")
PROCESS_METRIC = re.compile(r"\bprocess_\w+")
# A name that no one can register (RFC 2606): the operator has the address of the runbooks.
RUNBOOK_BASE = "https://triojam.example/runbooks"
# Series that Prometheus adds to a scrape.
OF_THE_SCRAPE = {"up", "scrape_duration_seconds"}


def load(path: Path) -> Any:
    """Return the content of a YAML file."""
    return yaml.safe_load(path.read_text("utf-8"))


def groups() -> list[dict[str, Any]]:
    """Return the groups of the recording rules, then those of the alerts."""
    return [
        group
        for name in ("recording.yml", "alerts.yml")
        for group in load(PROMETHEUS / "rules" / name)["groups"]
    ]


RULES = [rule for group in groups() for rule in group["rules"]]
RECORDINGS = {rule["record"]: rule for rule in RULES if "record" in rule}
# A name may have a rule for each severity: a dead server is a page or a ticket.
BY_SEVERITY = {(rule["alert"], rule["labels"]["severity"]): rule for rule in RULES if "alert" in rule}
ALERTS = {name: [rule for rule in RULES if rule.get("alert") == name] for name, _ in BY_SEVERITY}
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))


def checks() -> Iterator[dict[str, Any]]:
    """Yield each check of an alert in the promtool tests."""
    for path in TESTS:
        for case in load(path)["tests"]:
            yield from case.get("alert_rule_test", [])


def expressions() -> str:
    """Return the expressions of all rules, and the texts of the alerts."""
    asked = [rule["expr"] for rule in RULES]
    return "\n".join(
        asked + [text for alert in BY_SEVERITY.values() for text in alert["annotations"].values()]
    )


def inputs() -> str:
    """Return the series in the promtool tests."""
    return "\n".join(
        series["series"] for path in TESTS for case in load(path)["tests"] for series in case["input_series"]
    )


def run_promtool(*arguments: str | Path) -> str:
    """Run promtool, which must succeed; return its output."""
    ended = subprocess.run(
        [require_program("promtool", "prometheus"), *arguments],
        env=os.environ | {"GOGC": "400"},  # it collects garbage less often, and needs a quarter less CPU time
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        timeout=3 * PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_promtool_accepts_the_configuration() -> None:
    """`promtool check config` accepts the configuration and every rule, without a warning."""
    output = run_promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(list((PROMETHEUS / 'rules').iterdir()))} rule files found" in output
    found = sum(int(number) for number in re.findall(r"(\d+) rules found", output))
    assert found == len(RULES) == len(BY_SEVERITY) + len(RECORDINGS)
    assert not re.search("warning|duplicate|does not exist", output, re.IGNORECASE), output


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_promtool_tests_pass(path: Path) -> None:
    """`promtool test rules` passes every case."""
    run_promtool("test", "rules", path)


def test_prometheus_scrapes_a_server_with_default_settings() -> None:
    """The static target is the default metrics listener."""
    (job,) = load(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    settings = Settings()
    assert job["static_configs"] == [{"targets": [f"{settings.metrics_host}:{settings.metrics_port}"]}]


@pytest.mark.parametrize("text", [expressions(), RUNBOOKS], ids=["rules", "runbooks"])
def test_no_job_has_a_fixed_name(text: str) -> None:
    """No rule and no query of a runbook selects a job or an instance; NAME is for the operator's own."""
    assert set(re.findall(r'\b(?:job|instance)\s*[=!]~?\s*"(\w*)', text)) <= {"NAME"}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_promtool_evaluates_the_groups_in_their_order(path: Path) -> None:
    """The order in a promtool test has each group of the rules, recording rules first."""
    assert load(path)["group_eval_order"] == [group["name"] for group in groups()]


@pytest.mark.parametrize(("name", "severity"), BY_SEVERITY)
def test_an_alert_is_complete(name: str, severity: str) -> None:
    """It has a severity, a summary, a description with the instance or the job, and a link to its runbook."""
    alert = BY_SEVERITY[name, severity]
    assert re.fullmatch(r"Triojam(?:[A-Z][a-z]+)+", name)
    assert alert["labels"].keys() == {"severity"}
    assert severity in SEVERITIES
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert all(notes.values())
    assert "{{" not in notes["summary"]  # one headline for all instances
    assert re.search(r"\$labels\.(instance|job)\b", notes["description"])
    assert notes["runbook_url"] == f"{RUNBOOK_BASE}#{name.lower()}"


def test_the_command_in_the_docs_sets_the_address_of_the_runbooks(tmp_path: Path) -> None:
    """The command of docs/operate.md replaces the placeholder in every alert, and nothing else."""
    page = (DASHBOARDS.parent / "docs" / "operate.md").read_text("utf-8")
    (line,) = re.findall(rf"^sed -i .*{re.escape(RUNBOOK_BASE)}.*$", page, re.MULTILINE)
    *command, rules = shlex.split(line)
    (address,) = re.findall(r"https://(?!triojam\.example)[^|]+", command[-1])
    copy = tmp_path / rules
    copy.parent.mkdir(parents=True)
    shutil.copy(DASHBOARDS.parent / rules, copy)
    before = copy.read_text("utf-8")
    subprocess.run([*command, copy], check=True, timeout=PATIENCE)
    assert copy.read_text("utf-8") == before.replace(RUNBOOK_BASE, address)
    found = [rule for group in load(copy)["groups"] for rule in group["rules"]]
    assert [rule["annotations"]["runbook_url"] for rule in found] == [
        f"{address}#{name.lower()}" for name, _ in BY_SEVERITY
    ]


def test_descriptions_have_the_value() -> None:
    """Only the descriptions of yes-or-no alerts have no value."""
    silent = {
        name
        for (name, _), alert in BY_SEVERITY.items()
        if "$value" not in alert["annotations"]["description"]
    }
    assert silent == {"TriojamDown", "TriojamAbsent", "TriojamClockUnsynchronized", "TriojamReloadFailed"}


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    """The sections are the alerts in their order, each with its three parts."""
    head, *sections = re.split(r"^## ", RUNBOOKS, flags=re.MULTILINE)
    assert head.startswith("# Runbooks\n")
    assert [section.partition("\n")[0] for section in sections] == list(ALERTS)
    for section in sections:
        assert re.findall(r"^\*\*(.*?)\*\*", section, re.MULTILINE) == ["Means.", "See it.", "Do."], section


def test_each_alert_has_promtool_tests() -> None:
    """One promtool test makes it fire with its severity, and in another one it must not fire at all."""
    fires = {
        (check["alertname"], alert["exp_labels"]["severity"])
        for check in checks()
        for alert in check["exp_alerts"]
    }
    silent = {check["alertname"] for check in checks() if not check["exp_alerts"]}
    assert fires == set(BY_SEVERITY)
    assert silent == set(ALERTS)


@pytest.mark.parametrize("text", [expressions(), inputs(), RUNBOOKS], ids=["rules", "tests", "runbooks"])
def test_every_metric_exists(text: str) -> None:
    """Every named metric is one of a server, or a recording rule."""
    series = {sample.name for metric in live_metrics() for sample in metric.samples}
    collector = ProcessCollector(registry=CollectorRegistry())
    of_the_process = {sample.name for metric in collector.collect() for sample in metric.samples}
    assert set(OWN_METRIC.findall(text)) - series == set()
    if of_the_process:  # only Linux has them
        assert set(PROCESS_METRIC.findall(text)) - of_the_process == set()
    assert set(re.findall(r"\w+:\w+:\w+", text)) <= RECORDINGS.keys()


def test_the_tests_feed_series_of_a_scrape() -> None:
    """Every series in the promtool tests is one of a server, or one that Prometheus adds."""
    names = set(re.findall(r"^\w+", inputs(), re.MULTILINE))
    assert {name for name in names if not name.startswith(("triojam_", "process_"))} == OF_THE_SCRAPE


@pytest.mark.parametrize("text", [expressions(), RUNBOOKS], ids=["rules", "runbooks"])
def test_every_label_value_exists(text: str) -> None:
    """Every label value in an expression is one that a server has; any other value never matches."""
    values: dict[tuple[str, str], set[str]] = {}
    for metric in live_metrics():
        for sample in metric.samples:
            for label, value in sample.labels.items():
                values.setdefault((sample.name, label), set()).add(value)
    asked = LABEL_VALUES.findall(text)
    assert asked
    for name, label, alternatives in asked:
        assert set(alternatives.split("|")) <= values[name, label], (name, alternatives)


def test_every_recording_rule_is_used() -> None:
    """Another rule uses each recording rule."""
    asked = expressions()
    assert [name for name in RECORDINGS if not re.search(rf"{name}\b", asked)] == []


@pytest.mark.parametrize(
    ("alert", "expected"),
    [
        ("TriojamNearlyFull", f"> {problems.NEARLY_FULL}"),
        ("TriojamSlow", f"> {problems.SLOW_SECONDS}"),
        ("TriojamEventLoopLag", f"> {problems.LAG_SECONDS}"),
        ("TriojamCertificateExpires", f"< {problems.WARN_DAYS} * 86400"),
        ("TriojamCertificateExpires", f"< {problems.WRONG_DAYS} * 86400"),
    ],
)
def test_the_page_and_the_alerts_have_the_same_thresholds(alert: str, expected: str) -> None:
    """What the live page calls a problem is what the alert calls one."""
    assert any(expected in rule["expr"] for rule in ALERTS[alert])
