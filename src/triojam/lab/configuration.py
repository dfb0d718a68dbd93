"""The configuration of the lab's programs: command lines, files and environment variables."""

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triojam.lab.programs import LOOPBACK, Address, Program, ServerProgram

# Short, as a lab runs for minutes; 15 s is usual.
SCRAPE_INTERVAL = "1s"


def make_server(folder: Path, settings: Mapping[str, Any]) -> ServerProgram:
    """Make the server."""
    command = [sys.executable, "-m", "triojam.lab.server", json.dumps(dict(settings))]
    return ServerProgram("the server", command, folder / "server.log")


def make_alertmanager(path: str, folder: Path, receiver: str) -> Program:
    """Make Alertmanager. receiver: the URL to which it sends alerts."""
    configuration = {
        "route": {
            "receiver": "lab",
            "group_by": ["..."],  # no grouping: each alert is sent at once
            "group_wait": "0s",
            "group_interval": "1s",
            "repeat_interval": "24h",
        },
        "receivers": [{"name": "lab", "webhook_configs": [{"url": receiver, "send_resolved": True}]}],
    }
    storage = f"--storage.path={folder / 'alertmanager'}"
    return _make("Alertmanager", path, folder, configuration, [storage, "--cluster.listen-address="])


def make_prometheus(
    path: str, folder: Path, *, target: Address, alertmanager: Address, rules: Sequence[Path]
) -> Program:
    """Make Prometheus. target: the address that it scrapes. rules: the rule files."""
    configuration = {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
        "rule_files": [str(rule) for rule in rules],
        "alerting": {"alertmanagers": [_static(alertmanager)]},
        "scrape_configs": [{"job_name": "triojam"} | _static(target)],
    }
    storage = f"--storage.tsdb.path={folder / 'prometheus'}"
    # In its first seconds it does not know Alertmanager yet, and the alerts that it sends are lost.
    return _make("Prometheus", path, folder, configuration, [storage, "--rules.alert.resend-delay=2s"])


def make_grafana(path: str, folder: Path, *, dashboards: Path, prometheus: str) -> Program:
    """Make a Grafana that needs no login. prometheus: the URL of its data source."""
    port = reserve_port()
    command = [path, "server"] if Path(path).name == "grafana" else [path]
    homes = [home for home in ("/usr/share/grafana", "/usr/local/share/grafana") if Path(home).is_dir()]
    command += [f"--homepath={home}" for home in homes[:1]]
    variables = {
        "PROMETHEUS_URL": prometheus,
        "PROMETHEUS_SCRAPE_INTERVAL": SCRAPE_INTERVAL,
        "GRAFANA_DASHBOARDS": str(dashboards / "grafana" / "dashboards"),
        "GF_PATHS_PROVISIONING": str(dashboards / "grafana" / "provisioning"),
        "GF_PATHS_DATA": str(folder / "grafana"),
        "GF_PATHS_LOGS": str(folder / "grafana" / "log"),
        "GF_PATHS_PLUGINS": str(folder / "grafana" / "plugins"),
        "GF_SERVER_HTTP_ADDR": LOOPBACK,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        # No connections to the internet.
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        "GF_NEWS_NEWS_FEED_ENABLED": "false",
    }
    return Program("Grafana", command, folder / "grafana.log", (LOOPBACK, port), "/api/health", variables)


def reserve_port() -> int:
    """Return a free port of loopback that the kernel assigns to no other socket for a minute.

    The side of a connection that closes first keeps its port in TIME_WAIT. During that time the kernel does
    not choose the port, but a listener may ask for it by number.
    """
    with socket.create_server((LOOPBACK, 0), backlog=1) as listener:
        port: int = listener.getsockname()[1]
        with socket.create_connection((LOOPBACK, port)) as client:
            listener.accept()[0].close()
            client.recv(1)
    return port


def _make(
    name: str, path: str, folder: Path, configuration: Mapping[str, Any], flags: Sequence[str]
) -> Program:
    """Write a configuration file, and make a program of the Prometheus family that reads it."""
    port = reserve_port()
    file = folder / f"{name.lower()}.yml"
    file.write_text(json.dumps(configuration, indent=2), "utf-8")  # JSON is valid YAML
    command = [
        path,
        f"--config.file={file}",
        f"--web.listen-address={LOOPBACK}:{port}",
        f"--web.external-url=http://{LOOPBACK}:{port}/",
        *flags,
    ]
    return Program(name, command, folder / f"{name.lower()}.log", (LOOPBACK, port))


def _static(address: Address) -> dict[str, Any]:
    return {"static_configs": [{"targets": [f"{address[0]}:{address[1]}"]}]}
