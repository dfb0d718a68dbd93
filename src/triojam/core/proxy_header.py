"""The header of the PROXY protocol, version 1 and 2: it names the client of a connection from a proxy.

The specification is https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt. `parse_header` gets all
bytes that have come so far. It keeps nothing, so the cuts between the bytes never change the result. The
extensions behind the addresses (TLVs) are skipped, also the checksum.
"""

import re
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from triojam.core.addresses import endpoint

# The longest line of version 1, CR LF included (2.1 of the specification).
LONGEST_LINE = 107
# The longest header: it fits in the smallest TCP segment that each host must accept (2 of the specification).
LONGEST_HEADER = 536

_LINE_START = b"PROXY "
_UNKNOWN = b"PROXY UNKNOWN"
_PORT = rb"(0|[1-9]\d{0,4})"  # no leading zeros: they could mean octal
_LINE = re.compile(rb"PROXY TCP([46]) ([\dA-Fa-f:.]+) ([\dA-Fa-f:.]+) %b %b" % (_PORT, _PORT))
_HIGHEST_PORT = 65_535

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_BYTES = 16  # signature, version and command, family and transport, length
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and a command
_UNSPECIFIED, _IPV4, _IPV6, _UNIX = range(4)
_HIGHEST_TRANSPORT = 2
# A whole header of version 2 for a connection of the proxy itself.
OWN_CONNECTION = _SIGNATURE + bytes([_LOCAL, 0, 0, 0])
# The size of both addresses and both ports of a family, in bytes.
_ADDRESS_BYTES = {_IPV4: 12, _IPV6: 36, _UNIX: 216}


class HeaderError(Exception):
    """The bytes are not the beginning of a PROXY header. The text says why."""


class Header(NamedTuple):
    """A whole header.

    size: in bytes; the bytes behind it belong to the client.
    address: host and port of the client, as `endpoint` gives them. None for a connection of the proxy itself,
        such as a health check, and for a client without an IP address.
    """

    size: int
    address: tuple[str, int] | None


def parse_header(data: bytes) -> Header | None:
    """Return the header that `data` begins with; None if it is not whole yet. Raises HeaderError."""
    if data.startswith(_SIGNATURE):
        return _parse_binary(data)
    if data.startswith(_LINE_START):
        return _parse_line(data)
    if _SIGNATURE.startswith(data) or _LINE_START.startswith(data):
        return None
    raise HeaderError("no PROXY header")


def _parse_line(data: bytes) -> Header | None:
    """Parse version 1."""
    end = data.find(b"\r\n", 0, LONGEST_LINE)
    if end < 0:
        if len(data) >= LONGEST_LINE:
            raise HeaderError("version 1: no CR LF in the first 107 bytes")
        return None
    line, size = data[:end], end + 2
    if line == _UNKNOWN or line.startswith(_UNKNOWN + b" "):  # the rest must be ignored
        return Header(size, None)
    if (match := _LINE.fullmatch(line)) is None:
        raise HeaderError("version 1: not the form of the line")
    version, client, server, *ports = match.groups()
    client_port, server_port = map(int, ports)
    if max(client_port, server_port) > _HIGHEST_PORT:
        raise HeaderError("version 1: a port above 65535")
    family = AF_INET if version == b"4" else AF_INET6
    try:
        host = inet_ntop(family, inet_pton(family, client.decode("ascii")))
        inet_pton(family, server.decode("ascii"))
    except OSError:
        raise HeaderError(f"version 1: not an IPv{version.decode('ascii')} address") from None
    return Header(size, endpoint((host, client_port)))


def _parse_binary(data: bytes) -> Header | None:
    """Parse version 2."""
    start = data[len(_SIGNATURE) : _FIXED_BYTES]
    if start and start[0] not in (_LOCAL, _PROXY):
        raise HeaderError("version 2: an unknown version or command")
    family, transport = divmod(start[1], 16) if len(start) > 1 and start[0] == _PROXY else (0, 0)
    if family > _UNIX or transport > _HIGHEST_TRANSPORT:
        raise HeaderError("version 2: an unknown family or transport")
    if len(data) < _FIXED_BYTES:
        return None
    length = int.from_bytes(start[2:])
    if length > LONGEST_HEADER - _FIXED_BYTES:
        raise HeaderError(f"version 2: a header of more than {LONGEST_HEADER} bytes")
    # Without a transport, the addresses mean nothing and may be missing.
    if transport and length < _ADDRESS_BYTES.get(family, 0):
        raise HeaderError("version 2: too short for its addresses")
    size = _FIXED_BYTES + length
    if len(data) < size:
        return None
    if not transport or family in (_UNSPECIFIED, _UNIX):
        return Header(size, None)
    address_family, width = (AF_INET, 4) if family == _IPV4 else (AF_INET6, 16)
    block = data[_FIXED_BYTES : _FIXED_BYTES + _ADDRESS_BYTES[family]]
    port = int.from_bytes(block[2 * width : 2 * width + 2])
    return Header(size, endpoint((inet_ntop(address_family, block[:width]), port)))
