"""Network namespaces as machines: a router, and a machine behind each of its links (ip-netns(8)). Needs root.

Nothing in them can reach this machine, and no port of this machine is in the way.
"""

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from tests.helpers.requirements import cannot_run, require_program

ROUTER = "router"


class Network:
    """Machines by name. prefix: of the names of their namespaces, which the whole system can see."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def inside(self, machine: str) -> list[str]:
        """Return the words in front of a command that is to run on a machine; they execute the command."""
        return ["ip", "netns", "exec", f"{self.prefix}-{machine}"]

    def apply(self, machine: str, sysctls: Iterable[tuple[str, str, bool]]) -> None:
        """Apply kernel settings to a machine: the name, the value, and whether this may fail."""
        for key, value, may_fail in sysctls:
            command = ["sh", "-c", f"echo '{value}' >/proc/sys/{key.replace('.', '/')}"]
            subprocess.run([*self.inside(machine), *command], check=not may_fail, capture_output=may_fail)


@contextmanager
def network(router: Mapping[str, str], machines: Mapping[str, Sequence[str]]) -> Iterator[Network]:
    """Make the namespaces, and remove them at the end.

    router: the router's address on the link of each machine. machines: the addresses of each machine.
    """
    require_program("ip", "iproute2")
    made = Network(f"triojam-{os.getpid()}")
    names = [f"{made.prefix}-{each}" for each in (ROUTER, *machines)]
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
        except subprocess.CalledProcessError as exc:
            cannot_run(f"needs root and network namespaces: {exc.stderr.decode().strip()}")
        for machine, addresses in machines.items():
            _join(made, machine, router[machine], addresses)
        subprocess.run(
            [*made.inside(ROUTER), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"], check=True
        )
        yield made
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _join(made: Network, machine: str, router_address: str, addresses: Sequence[str]) -> None:
    """Connect a machine to the router, and send what it sends to others through the router."""
    router, leaf = f"{made.prefix}-{ROUTER}", f"{made.prefix}-{machine}"
    _ip("link", "add", machine, "netns", router, "type", "veth", "peer", "name", "uplink", "netns", leaf)
    for address in addresses:
        _ip("-n", leaf, "address", "add", address, "peer", router_address, "dev", "uplink")
        _ip("-n", router, "address", "add", router_address, "peer", address, "dev", machine)
    for name, device in ((leaf, "lo"), (leaf, "uplink"), (router, "lo"), (router, machine)):
        _ip("-n", name, "link", "set", device, "up")
    _ip("-n", leaf, "route", "add", "default", "via", router_address)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
