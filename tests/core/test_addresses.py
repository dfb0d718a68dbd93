"""Socket addresses as text."""

from socket import if_nametoindex

import pytest

from triojam.core.addresses import describe_ports, format_address, reachable


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 45000), "127.0.0.1:45000"),
        (("::1", 45000, 0, 0), "[::1]:45000"),
        (("::ffff:192.0.2.1", 45000, 0, 0), "192.0.2.1:45000"),
        (("localhost", 1), "localhost:1"),
        (("fe80::1", 45000, 0, if_nametoindex("lo")), "[fe80::1%lo]:45000"),
        (("fe80::1%lo", 45000), "[fe80::1%lo]:45000"),
        (("fe80::1", 45000, 0, 2**31 - 1), f"[fe80::1%{2**31 - 1}]:45000"),
    ],
)
def test_an_address_is_host_and_port(address: tuple[object, ...], text: str) -> None:
    """An IPv6 address has brackets and its interface; an IPv4-mapped one is that of IPv4."""
    assert format_address(address) == text


@pytest.mark.parametrize(
    ("addresses", "text"),
    [
        ([("0.0.0.0", 45000), ("::", 45000)], "port 45000 (IPv4 and IPv6)"),
        ([("0.0.0.0", 45000)], "port 45000 (IPv4)"),
        ([("0.0.0.0", 1), ("::", 2)], "0.0.0.0:1, [::]:2"),
        ([("127.0.0.1", 45000)], "127.0.0.1:45000"),
    ],
)
def test_ports_are_described_for_a_person(addresses: list[tuple[str, int]], text: str) -> None:
    """Sockets on every interface with one port are that port; other sockets are their addresses."""
    assert describe_ports(addresses) == text


def test_a_socket_that_listens_everywhere_is_reached_on_loopback() -> None:
    """0.0.0.0 and :: are addresses to listen on, not to connect to."""
    assert reachable(("::", 1)) == reachable(("0.0.0.0", 1)) == ("127.0.0.1", 1)
    assert reachable(("192.0.2.1", 1)) == ("192.0.2.1", 1)
