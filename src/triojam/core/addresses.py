"""Socket addresses as text."""

from collections.abc import Sequence
from typing import Any

# How a socket for both families shows an IPv4 client (RFC 4291, 2.5.5.2).
MAPPED = "::ffff:"


def format_address(address: tuple[Any, ...]) -> str:
    """Render a socket address as host:port, an IPv6 host in brackets; an IPv4-mapped one as IPv4."""
    host, port = address[:2]
    if "." in host:
        host = host.removeprefix(MAPPED)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(address: tuple[str, int]) -> tuple[str, int]:
    """Return where this machine reaches a listening socket: one that listens everywhere, on loopback."""
    host, port = address
    return {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host), port  # noqa: S104  # to connect


def describe_ports(addresses: Sequence[tuple[str, int]]) -> str:
    """Say for a person where sockets listen: "port 45000 (IPv4 and IPv6)", or their addresses."""
    families = {"0.0.0.0": "IPv4", "::": "IPv6"}  # noqa: S104  # to read
    ports = {port for _, port in addresses}
    if len(ports) == 1 and all(host in families for host, _ in addresses):
        return f"port {ports.pop()} ({' and '.join(sorted(families[host] for host, _ in addresses))})"
    return ", ".join(format_address(address) for address in addresses)
