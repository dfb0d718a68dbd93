"""deploy/prometheus: promtool accepts the examples of discovery, and they name the servers of the fleet."""

import re
import subprocess
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from tests.deploy.files import CONFIGURATION, DEPLOY
from tests.helpers.requirements import require_program
from tests.helpers.servers import PATIENCE
from triojam import Settings

FILE = DEPLOY / "prometheus" / "discovery.yml"
JOBS: dict[str, dict[str, Any]] = {
    each["job_name"]: each for each in yaml.safe_load(FILE.read_text("utf-8"))["scrape_configs"]
}
OF_SERVERS = [name for name in JOBS if name != "haproxy"]
HAPROXY = CONFIGURATION.read_text("utf-8")


def check(file: Path) -> tuple[int, str]:
    """Let promtool check a configuration; return its exit status, and what it says."""
    ended = subprocess.run(
        [require_program("promtool", "prometheus"), "check", "config", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        timeout=PATIENCE,
    )
    return ended.returncode, ended.stdout


def test_promtool_accepts_the_examples(tmp_path: Path) -> None:
    """`promtool check config` accepts each example, without a warning.

    Debian's promtool is built without Kubernetes. There, the rest of that example is checked.
    """
    status, said = check(FILE)
    if "field kubernetes_sd_configs not found" in said:
        copytree(FILE.parent, tmp_path, dirs_exist_ok=True)
        configuration = yaml.safe_load(FILE.read_text("utf-8"))
        assert [each.pop("kubernetes_sd_configs", None) for each in configuration["scrape_configs"]].count(
            [{"role": "pod", "selectors": [{"role": "pod", "label": "app.kubernetes.io/name=triojam"}]}]
        ) == 1
        (tmp_path / FILE.name).write_text(yaml.safe_dump(configuration), "utf-8")
        status, said = check(tmp_path / FILE.name)
    assert status == 0, said
    assert not re.search("warning|does not exist", said, re.IGNORECASE), said


@pytest.mark.parametrize("name", OF_SERVERS)
def test_servers_have_the_same_job(name: str) -> None:
    """However Prometheus finds servers, their label `job` is the same."""
    replaced = {"target_label": "job", "replacement": "triojam"}
    assert name == "triojam" or replaced in JOBS[name]["relabel_configs"]


def test_all_kinds_of_discovery_are_there() -> None:
    """There is an example for files, DNS and Kubernetes."""
    kinds = {key for name in OF_SERVERS for key in JOBS[name] if key.endswith("_sd_configs")}
    assert kinds == {"file_sd_configs", "dns_sd_configs", "kubernetes_sd_configs"}


def test_targets_are_the_servers_behind_haproxy() -> None:
    """The files name the metrics listener of each server of haproxy.cfg, and its exporter."""
    (file,) = (FILE.parent / "targets").iterdir()
    (group,) = yaml.safe_load(file.read_text("utf-8"))
    servers = re.findall(r"^    server \w+ ([\d.]+):", HAPROXY, re.MULTILINE)
    assert group["targets"] == [f"{each}:{Settings().metrics_port}" for each in servers]
    (exporter,) = JOBS["haproxy"]["static_configs"]
    assert [f"    bind {each}\n" in HAPROXY for each in exporter["targets"]] == [True]
