"""PROXY headers: a builder of both versions, good ones with their client, and bad ones by name.

HAProxy's are from HAProxy 2.6.12, byte for byte. The CVE numbers name faults of other parsers.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

IPAddress = IPv4Address | IPv6Address
Address = tuple[str, int] | None

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL = SIGNATURE + b"\x20\0\0\0"


def line(client: IPAddress, server: IPAddress, client_port: int, server_port: int) -> bytes:
    """Build a header of version 1."""
    return f"PROXY TCP{client.version} {client} {server} {client_port} {server_port}\r\n".encode("ascii")


def binary(
    client: IPAddress, server: IPAddress, client_port: int, server_port: int, tlvs: bytes = b""
) -> bytes:
    """Build a header of version 2."""
    block = client.packed + server.packed + client_port.to_bytes(2) + server_port.to_bytes(2)
    family = 0x11 if client.version == 4 else 0x21
    return SIGNATURE + bytes([0x21, family]) + (len(block) + len(tlvs)).to_bytes(2) + block + tlvs


def header_for(host: str, port: int = 50000, *, version: int = 2) -> bytes:
    """Build the header that a proxy sends for a client of this address."""
    client = ip_address(host)
    return (line if version == 1 else binary)(client, client, port, 45000)


def v2(command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    """Build a header of version 2 from its bytes; the length may be a wrong one."""
    size = len(block) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2) + block


IPV4_BLOCK = bytes([192, 0, 2, 1, 192, 0, 2, 2, 0xDB, 0xA0, 0xAF, 0xC8])  # ports 56224 and 45000
IPV4_CLIENT = ("192.0.2.1", 56224)
IPV6_BLOCK = IPv6Address("2001:db8::1").packed + IPv6Address("2001:db8::2").packed + b"\xdb\xa0\xaf\xc8"

GOOD_HEADERS: dict[str, tuple[bytes, Address]] = {
    # HAProxy's own bytes.
    "HAProxy send-proxy": (
        b"PROXY TCP4 127.0.0.1 127.0.0.1 35136 46797\r\n", ("127.0.0.1", 35136),
    ),
    "HAProxy send-proxy, IPv6": (b"PROXY TCP6 ::1 ::1 34188 38675\r\n", ("::1", 34188)),
    "HAProxy send-proxy, IPv4-mapped": (
        b"PROXY TCP6 ::ffff:127.0.0.1 ::ffff:127.0.0.1 34648 45719\r\n", ("127.0.0.1", 34648),
    ),
    "HAProxy send-proxy, UNIX client": (b"PROXY UNKNOWN\r\n", None),
    "HAProxy send-proxy-v2": (
        SIGNATURE + b"!\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x8a\xee\x8eq", ("127.0.0.1", 35566),
    ),
    "HAProxy send-proxy-v2, IPv6": (
        SIGNATURE + b"!!\x00$" + 2 * (bytes(15) + b"\x01") + b"\xb5\xbc\xab\xdd", ("::1", 46524),
    ),
    "HAProxy send-proxy-v2, IPv4-mapped": (
        SIGNATURE + b"!!\x00$" + 2 * (bytes(10) + b"\xff\xff\x7f\0\0\x01") + b"\xe3\xc6\xad\xb1",
        ("127.0.0.1", 58310),
    ),
    "HAProxy send-proxy-v2, checksum and unique id": (
        SIGNATURE + b"!\x11\x00\x16\x7f\x00\x00\x01\x7f\x00\x00\x01\xe8\x98\xa4+"
        b"\x03\x00\x040\xf3;\xf4\x05\x00\x00",
        ("127.0.0.1", 59544),
    ),
    "HAProxy send-proxy-v2-ssl-cn": (
        SIGNATURE + b"!\x11\x00\x1b\x7f\x00\x00\x01\x7f\x00\x00\x01\xcf\x9e\x9e\xdd"
        b"\x03\x00\x04B2\xd2\x02 \x00\x05\x00\x00\x00\x00\x00",
        ("127.0.0.1", 53150),
    ),
    "HAProxy check of version 2, or UNIX client": (SIGNATURE + b" \x00\x00\x00", None),
    # Version 1.
    "v1 example of the specification": (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", ("192.168.0.1", 56324),
    ),
    "v1 longest IPv4": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ("255.255.255.255", 65535),
    ),
    "v1 longest IPv6": (
        b"PROXY TCP6 " + 2 * (b"ffff:" * 7 + b"ffff ") + b"65535 65535\r\n", ("ffff:" * 7 + "ffff", 65535),
    ),
    "v1 upper case": (b"PROXY TCP6 2001:DB8::A ::1 1 2\r\n", ("2001:db8::a", 1)),
    "v1 leading zeros of a group": (b"PROXY TCP6 2001:0db8::0001 ::1 1 2\r\n", ("2001:db8::1", 1)),
    "v1 port 0": (b"PROXY TCP4 192.0.2.1 192.0.2.2 0 0\r\n", ("192.0.2.1", 0)),
    "v1 unknown with a space": (b"PROXY UNKNOWN \r\n", None),
    "v1 unknown, longest": (
        b"PROXY UNKNOWN " + 2 * (b"ffff:" * 7 + b"ffff ") + b"65535 65535\r\n", None,
    ),
    "v1 unknown, rest ignored": (b"PROXY UNKNOWN \0\xff\r x\n y \r\n", None),
    # Version 2.
    "v2 TCP over IPv4": (v2(0x21, 0x11, IPV4_BLOCK), IPV4_CLIENT),
    "v2 UDP over IPv4": (v2(0x21, 0x12, IPV4_BLOCK), IPV4_CLIENT),
    "v2 TCP over IPv6": (v2(0x21, 0x21, IPV6_BLOCK), ("2001:db8::1", 56224)),
    "v2 UDP over IPv6": (v2(0x21, 0x22, IPV6_BLOCK), ("2001:db8::1", 56224)),
    "v2 UNIX stream": (v2(0x21, 0x31, bytes(216)), None),
    "v2 UNIX datagram": (v2(0x21, 0x32, bytes(216)), None),
    "v2 unspecified": (v2(0x21, 0x00, b""), None),
    "v2 unspecified with bytes": (v2(0x21, 0x00, IPV4_BLOCK), None),
    "v2 unspecified family": (v2(0x21, 0x01, b""), None),
    "v2 unspecified transport": (v2(0x21, 0x10, IPV4_BLOCK), None),
    "v2 unspecified transport without addresses": (v2(0x21, 0x10, b""), None),
    "v2 LOCAL": (LOCAL, None),
    "v2 LOCAL with addresses": (v2(0x20, 0x11, IPV4_BLOCK), None),
    "v2 LOCAL, too short for its family": (v2(0x20, 0x21, b"\0"), None),
    "v2 longest": (v2(0x21, 0x11, IPV4_BLOCK + bytes(508)), IPV4_CLIENT),
    "v2 wrong checksum": (v2(0x21, 0x11, IPV4_BLOCK + b"\x03\0\x04abcd"), IPV4_CLIENT),
    "v2 extension that is cut": (v2(0x21, 0x11, IPV4_BLOCK + b"\x05\xff"), IPV4_CLIENT),
}  # fmt: skip

BAD_HEADERS = {
    # No header at all.
    "request": b"TIME\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00",
    "HTTP": b"GET / HTTP/1.1\r\n",
    "empty line": b"\r\nTIME",
    "signature cut by a request": SIGNATURE[:11] + b"T",
    "space before": b" PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    # Faults of other parsers.
    "CVE-2021-23351 line without end": b"PROXY TCP4 ".ljust(107, b"1"),
    "CVE-2021-23409 client without a header": b"x",
    "CVE-2019-14243 as it was reported": v2(0x21, 0x12, b""),
    "CVE-2019-14243 IPv4 without addresses": v2(0x21, 0x11, b""),
    "CVE-2019-14243 IPv4 too short by one": v2(0x21, 0x11, IPV4_BLOCK[:-1]),
    "CVE-2019-14243 IPv6 with an IPv4 block": v2(0x21, 0x21, IPV4_BLOCK),
    "CVE-2019-14243 IPv6 too short by one": v2(0x21, 0x21, IPV6_BLOCK[:-1]),
    "CVE-2019-14243 UNIX too short by one": v2(0x21, 0x31, bytes(215)),
    "CVE-2019-10097 line without words": b"PROXY \r\n",
    "CVE-2019-10097 line without addresses": b"PROXY TCP4\r\n",
    "CVE-2019-10097 line that ends after a word": b"PROXY TCP4 192.0.2.1\r\n",
    "CVE-2019-10097 more than the buffer": v2(0x21, 0x11, b"", length=0xFFFF),
    # Version 1.
    "v1 lower case": b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 lower-case family": b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 family UDP4": b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 two spaces in front": b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 tab": b"PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 space at the end": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
    "v1 one word more": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
    "v1 one word less": b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
    "v1 LF alone": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\nTIME\r\n",
    "v1 CR alone": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\rTIME\r\n",
    "v1 two CR": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r\n",
    "v1 NUL in the client's address": b"PROXY TCP4 192.0.2.1\0 192.0.2.2 1 2\r\n",
    "v1 NUL in the server's address": b"PROXY TCP4 192.0.2.1 192.0.2.2\0 1 2\r\n",
    "v1 address that is not ASCII": b"PROXY TCP4 192.0.2.1 192.0.2.\xd9\xa1 1 2\r\n",
    "v1 IPv6 address of TCP4": b"PROXY TCP4 ::1 192.0.2.2 1 2\r\n",
    "v1 IPv4 address of TCP6": b"PROXY TCP6 192.0.2.1 ::1 1 2\r\n",
    "v1 two families": b"PROXY TCP6 ::1 192.0.2.2 1 2\r\n",
    "v1 bad address of the server": b"PROXY TCP4 192.0.2.1 192.0.2 1 2\r\n",
    "v1 three numbers": b"PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n",
    "v1 octal": b"PROXY TCP4 192.0.2.010 192.0.2.2 1 2\r\n",
    "v1 number above 255": b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
    "v1 two double colons": b"PROXY TCP6 2001::1::2 ::1 1 2\r\n",
    "v1 group of five digits": b"PROXY TCP6 20010::1 ::1 1 2\r\n",
    "v1 interface": b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    "v1 brackets": b"PROXY TCP6 [::1] ::1 1 2\r\n",
    "v1 name": b"PROXY TCP4 localhost 192.0.2.2 1 2\r\n",
    "v1 client port above 65535": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
    "v1 server port above 65535": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
    "v1 client port with a zero": b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
    "v1 server port with a zero": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 02\r\n",
    "v1 port with a sign": b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
    "v1 port below 0": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 -2\r\n",
    "v1 port with an underscore": b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 2\r\n",
    "v1 digits that are not ASCII": b"PROXY TCP4 192.0.2.1 192.0.2.2 \xd9\xa1 2\r\n",
    "v1 longer than UNKNOWN": b"PROXY UNKNOWNS\r\n",
    "v1 unknown, too long": b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n",
    # Version 2.
    "v2 version 0": v2(0x01, 0x11, IPV4_BLOCK),
    "v2 version 1": v2(0x11, 0x11, IPV4_BLOCK),
    "v2 version 3": v2(0x31, 0x11, IPV4_BLOCK),
    "v2 command 2": v2(0x22, 0x11, IPV4_BLOCK),
    "v2 family 4": v2(0x21, 0x41, IPV4_BLOCK),
    "v2 transport 3": v2(0x21, 0x13, IPV4_BLOCK),
    "v2 one byte too long": v2(0x21, 0x11, IPV4_BLOCK + bytes(509)),
    "v2 LOCAL, too long": v2(0x20, 0x00, bytes(521)),
}
