"""Socket addresses as text."""

from collections.abc import Sequence
from socket import if_indextoname
from typing import Any

# A socket for both families shows an IPv4 client with this prefix (RFC 4291, 2.5.5.2).
MAPPED = "::ffff:"


def host_and_port(address: tuple[Any, ...]) -> tuple[str, int]:
    """Return host and port of a socket address; a link-local host has its interface, as in fe80::1%eth0."""
    host, port, *more = address
    scope = more[1] if len(more) > 1 else 0
    if not scope or "%" in host:
        return host, port
    try:
        zone = if_indextoname(scope)
    except OSError:  # the interface is gone
        zone = str(scope)
    return f"{host}%{zone}", port


def endpoint(address: tuple[Any, ...]) -> tuple[str, int]:
    """Return host and port of a socket address in the form that is equal for the same host and port."""
    host = address[0].partition("%")[0]
    return host.removeprefix(MAPPED) if "." in host else host, address[1]


def format_address(address: tuple[Any, ...]) -> str:
    """Render a socket address as host:port. IPv6 hosts are in brackets; IPv4-mapped ones become IPv4."""
    host, port = host_and_port(address)
    if "." in host:
        host = host.removeprefix(MAPPED)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(address: tuple[str, int]) -> tuple[str, int]:
    """Return the address at which this machine reaches a listening socket; loopback for a wildcard."""
    host, port = address
    return {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host), port  # noqa: S104  # to connect


def describe_ports(addresses: Sequence[tuple[str, int]]) -> str:
    """Describe for people where sockets listen: "port 45000 (IPv4 and IPv6)", or their addresses."""
    families = {"0.0.0.0": "IPv4", "::": "IPv6"}  # noqa: S104  # to read
    ports = {port for _, port in addresses}
    if len(ports) == 1 and all(host in families for host, _ in addresses):
        return f"port {ports.pop()} ({' and '.join(sorted(families[host] for host, _ in addresses))})"
    return ", ".join(format_address(address) for address in addresses)
