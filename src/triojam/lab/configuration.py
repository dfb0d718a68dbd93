"""The configuration of the lab's programs: command lines, files and environment variables.

The programs run in the lab's folder. Paths are relative to it, because its own path may have characters that
Prometheus takes for a pattern, or does not take at all.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from triojam.errors import LabError
from triojam.lab.network import LOOPBACK, Network, in_url
from triojam.lab.programs import Address, Home, Program, ServerProgram

# Short, as a lab runs for minutes; 15 s is usual.
SCRAPE_INTERVAL = "1s"


def find_shipped(folder: str) -> Path:
    """Return a folder of the installed package or of the checkout."""
    package = Path(str(resources.files("triojam")))
    for parent in (package, package.parents[1]):
        if (parent / folder).is_dir():
            return parent / folder
    raise LabError(f"lab: the folder {folder} is missing; was triojam installed without its wheel?")


@dataclass(frozen=True, kw_only=True)
class Service:
    """What serves the time: one server, or a fleet behind HAProxy. address: where clients connect."""

    servers: Sequence[ServerProgram]
    address: Address
    haproxy: Program | None = None

    @property
    def programs(self) -> list[Program]:
        """Its programs in the order of their start."""
        return [*self.servers, *([self.haproxy] if self.haproxy else [])]

    @property
    def targets(self) -> dict[str, list[str]]:
        """What Prometheus scrapes, by job."""
        servers = [each.instance for each in self.servers]
        return {"triojam": servers} | ({"haproxy": [self.haproxy.instance]} if self.haproxy else {})

    @property
    def names(self) -> dict[str, str]:
        """The names of the servers of a fleet, by Prometheus's label `instance`."""
        return {each.instance: each.name for each in self.servers} if self.haproxy else {}

    def pages(self, network: Network) -> dict[str, str]:
        """Return the URLs of its pages by name, the most useful one first."""
        live_pages = {each.name: network.url(each.web[1]) for each in self.servers}
        if self.haproxy is not None:
            return {"HAProxy": self.haproxy.url, **live_pages}
        (page,) = live_pages.values()
        return {"live page": page, "metrics": f"{page}metrics"}


def make_service(home: Home, settings: Mapping[str, Any], fleet: int = 1, haproxy: str = "") -> Service:
    """Make one server, or with the path of HAProxy a fleet, whose servers share `max_connections`."""
    network = home.network
    port = network.ports.get("--port", 0) or network.reserve_port()
    address = (network.shown, port)
    if not haproxy:
        server = _make_server("the server", home, settings, network.listens, address)
        return Service(servers=[server], address=address)
    # Only HAProxy connects to the time ports.
    own = {**settings, "max_connections": settings["max_connections"] // fleet, "proxies": LOOPBACK}
    servers = [
        _make_server(f"time{number}", home, own, LOOPBACK, (LOOPBACK, network.reserve_port()))
        for number in range(1, fleet + 1)
    ]
    return Service(servers=servers, address=address, haproxy=_make_haproxy(haproxy, home, address, servers))


def _make_server(
    name: str, home: Home, settings: Mapping[str, Any], listens: str, address: Address
) -> ServerProgram:
    """Make a server. Its ports are chosen here: it has the same ones when it is started again."""
    network = home.network
    web_port = network.ports.get("--metrics-port", 0) or network.reserve_port()
    everything = {
        **settings,
        "host": listens,
        "port": address[1],
        "metrics_host": network.listens,
        "metrics_port": web_port,
        "metrics_names": network.names,
    }
    command = [sys.executable, "-m", "triojam.lab.server", json.dumps(everything)]
    return ServerProgram(name, command, home, address, web=(network.shown, web_port))


def _make_haproxy(path: str, home: Home, address: Address, servers: Sequence[ServerProgram]) -> Program:
    """Make HAProxy in front of servers. address: where clients connect to it.

    The configuration is that of deploy/haproxy, but for addresses, for what needs root, and for a page.
    """
    network = home.network
    host, page = in_url(network.listens), network.reserve_port()
    lines = [
        f"    server {each.name} {in_url(each.address[0])}:{each.address[1]}"
        f" addr {in_url(each.web[0])} port {each.web[1]}\n"
        for each in servers
    ]
    text = (find_shipped("deploy/haproxy") / "haproxy.cfg").read_text("utf-8")
    for shipped, changed in {
        r"^    (?:user|group|chroot) .*\n": "",
        r"(?<=^    bind )[\d.]+:\d+$": f"{host}:{page}",
        r"(?<=^    bind ):::\d+ v4v6$": f"{host}:{address[1]}",
        r"(?<=^    default-server check) port \d+": "",
        r"(?:^    server .*\n)+": "".join(lines),
        r"^    http-request return status 404$": "    stats enable\n    stats uri /\n    stats refresh 2s",
    }.items():
        text, found = re.subn(shipped, changed, text, flags=re.MULTILINE)
        if not found:
            raise LabError(f"lab: haproxy.cfg has no line {shipped}")
    file = home.folder / "haproxy.cfg"
    file.write_text(text, "utf-8")
    return Program("HAProxy", [path, "-f", file.name], home, (network.shown, page), "metrics")


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
    path: str,
    home: Home,
    *,
    targets: Mapping[str, Sequence[str]],
    alertmanager: str,
    rules: Sequence[Path],
) -> Program:
    """Make Prometheus. targets: the addresses that it scrapes, by job. rules: files in the folder."""
    configuration = {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
        "rule_files": [str(rule.relative_to(home.folder)) for rule in rules],
        "alerting": {"alertmanagers": [_static([alertmanager])]},
        "scrape_configs": [{"job_name": job} | _static(addresses) for job, addresses in targets.items()],
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


def _static(targets: Sequence[str]) -> dict[str, Any]:
    return {"static_configs": [{"targets": targets}]}
