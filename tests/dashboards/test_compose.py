"""What Grafana and the containers read: provisioning, the services of compose, the image."""

import re

from tests.dashboards.content import DASHBOARDS
from tests.dashboards.test_rules import load as load_yaml

ROOT = DASHBOARDS.parent


def test_provisioning_uses_the_environment() -> None:
    """Grafana gets one data source and one folder of dashboards from its environment."""
    folder = DASHBOARDS / "grafana" / "provisioning"
    sources = load_yaml(folder / "datasources" / "triojam.yaml")
    (source,) = sources["datasources"]
    assert (sources["apiVersion"], source["type"], source["url"]) == (1, "prometheus", "$PROMETHEUS_URL")
    providers = load_yaml(folder / "dashboards" / "triojam.yaml")
    (provider,) = providers["providers"]
    assert (providers["apiVersion"], provider["type"]) == (1, "file")
    assert provider["options"] == {"path": "$GRAFANA_DASHBOARDS"}


def test_compose_services_are_complete() -> None:
    """The services and their mounted files exist, and all published ports are on loopback."""
    services = load_yaml(DASHBOARDS / "compose.yaml")["services"]
    assert set(services) == {"triojam", "load", "prometheus", "alertmanager", "grafana"}
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", []):
            source, _, _ = volume.partition(":")
            if source.startswith("./"):
                assert (DASHBOARDS / source).exists(), f"{name}: {source}"
        for needed in service.get("depends_on", []):
            assert needed in services
    assert services["triojam"]["build"] == {"context": "..", "dockerfile": "Containerfile"}
    assert not any("45001" in port for port in services["triojam"]["ports"])
    given = services["grafana"]["environment"]
    assert {"PROMETHEUS_URL", "PROMETHEUS_SCRAPE_INTERVAL", "GRAFANA_DASHBOARDS"} <= set(given)


def test_compose_has_the_same_prometheus() -> None:
    """Prometheus in containers has the same configuration, except for the addresses."""
    configuration = load_yaml(DASHBOARDS / "compose" / "prometheus.yml")
    shipped = load_yaml(DASHBOARDS / "prometheus" / "prometheus.yml")
    assert configuration["global"] == shipped["global"]
    assert configuration["rule_files"] == shipped["rule_files"]
    jobs = [job["job_name"] for job in configuration["scrape_configs"]]
    assert jobs == [job["job_name"] for job in shipped["scrape_configs"]]
    (targets,) = load_yaml(DASHBOARDS / "compose" / "targets" / "triojam.yml")
    assert targets == {"targets": ["triojam:45001"]}


def test_the_container_image_is_complete() -> None:
    """The copied files exist, the user is not root, and there is a health check."""
    text = (ROOT / "Containerfile").read_text("utf-8")
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    (user,) = re.findall(r"^USER (\d+)", text, re.MULTILINE)
    assert int(user) > 0
    assert "HEALTHCHECK" in text
    assert text.endswith('ENTRYPOINT ["triojam"]\n')
