"""The configuration of the lab's programs: command lines, files and environment variables.

The programs run in the lab's folder. Paths are relative to it, because its own path may have characters that
Prometheus takes for a pattern, or does not take at all.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triojam.lab.network import Network, in_url
from triojam.lab.programs import Address, Home, Program, ServerProgram

# Short, as a lab runs for minutes; 15 s is usual.
SCRAPE_INTERVAL = "1s"


def make_server(home: Home, settings: Mapping[str, Any]) -> ServerProgram:
    """Make the server."""
    network = home.network
    everything = {
        **settings,
        "host": network.listens,
        "port": network.ports.get("--port", 0),
        "metrics_host": network.listens,
        "metrics_port": network.ports.get("--metrics-port", 0),
        "metrics_names": network.names,
    }
    command = [sys.executable, "-m", "triojam.lab.server", json.dumps(everything)]
    return ServerProgram("the server", command, home, (network.shown, 0))


def make_alertmanager(path: str, home: Home, receiver: str) -> Program:
    """Make Alertmanager, on loopback: its page can silence alerts. receiver: the URL for its alerts."""
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
    command = [path, "--storage.path=alertmanager", "--cluster.listen-address="]
    return _make("Alertmanager", command, configuration, home, Network())


def make_prometheus(
    path: str, home: Home, *, targets: Sequence[Address], alertmanager: Address, rules: Sequence[Path]
) -> Program:
    """Make Prometheus. targets: the addresses that it scrapes. rules: the rule files, in the folder."""
    configuration = {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
        "rule_files": [str(rule.relative_to(home.folder)) for rule in rules],
        "alerting": {"alertmanagers": [_static([alertmanager])]},
        "scrape_configs": [{"job_name": "triojam"} | _static(targets)],
    }
    flags = [
        "--storage.tsdb.path=prometheus",
        # In its first seconds it does not know Alertmanager yet, and the alerts that it sends are lost.
        "--rules.alert.resend-delay=2s",
    ]
    return _make("Prometheus", [path, *flags], configuration, home, home.network)


def make_grafana(path: str, home: Home, *, dashboards: Path, prometheus: str) -> Program:
    """Make a Grafana that needs no login. prometheus: the URL of its data source."""
    network = home.network
    port = network.port_of("Grafana")
    command = [path, "server"] if Path(path).name == "grafana" else [path]
    homes = [home for home in ("/usr/share/grafana", "/usr/local/share/grafana") if Path(home).is_dir()]
    command += [f"--homepath={home}" for home in homes[:1]]
    variables = {
        "PROMETHEUS_URL": prometheus,
        "PROMETHEUS_SCRAPE_INTERVAL": SCRAPE_INTERVAL,
        "GRAFANA_DASHBOARDS": str(dashboards / "grafana" / "dashboards"),
        "GF_PATHS_PROVISIONING": str(dashboards / "grafana" / "provisioning"),
        "GF_PATHS_DATA": str(home.folder / "grafana"),
        "GF_PATHS_LOGS": str(home.folder / "grafana" / "log"),
        "GF_PATHS_PLUGINS": str(home.folder / "grafana" / "plugins"),
        "GF_SERVER_HTTP_ADDR": network.listens,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        # No connections to the internet.
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
        "GF_NEWS_NEWS_FEED_ENABLED": "false",
    }
    return Program("Grafana", command, home, (network.shown, port), "api/health", variables)


def _make(
    name: str, command: Sequence[str], configuration: Mapping[str, Any], home: Home, network: Network
) -> Program:
    """Write a configuration file, and make a program of the Prometheus family that reads it."""
    port = network.port_of(name)
    file = f"{name.lower()}.yml"
    (home.folder / file).write_text(json.dumps(configuration, indent=2), "utf-8")  # JSON is valid YAML
    flags = [
        f"--config.file={file}",
        f"--web.listen-address={in_url(network.listens)}:{port}",
        f"--web.external-url={network.url(port)}",
    ]
    return Program(name, [*command, *flags], home, (network.shown, port))


def _static(addresses: Sequence[Address]) -> dict[str, Any]:
    return {"static_configs": [{"targets": [f"{in_url(host)}:{port}" for host, port in addresses]}]}
