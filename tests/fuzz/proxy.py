"""Fuzzing the PROXY header: any bytes, cut anywhere, and built headers. The oracle knows the result.

The first byte of an input chooses what the bytes behind it follow (`STARTS`), or that a header is built from
them. The second byte chooses the cuts.
"""

import random
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise

from tests.helpers.proxy_headers import SIGNATURE, binary, line
from triojam.core.proxy_header import Header, HeaderError, parse_header

Result = tuple[int, tuple[str, int] | None] | str
BAD, MORE = "bad", "more"
STARTS = (b"", SIGNATURE, SIGNATURE + b"\x21", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN")
BUILT = len(STARTS)
# What an input chooses is taken modulo this.
CHOICES = BUILT + 1
LONGEST_LINE, LONGEST = 107, 536


def try_one(data: bytes) -> None:
    """Run one input, cut as it says and whole. The oracle must agree with both."""
    choice, cut = data[:2].ljust(2, b"\0")
    rest = data[2:]
    if choice % CHOICES == BUILT:
        _build(rest)
        return
    stream = STARTS[choice % CHOICES] + rest
    expected = foresee(stream)
    for edges in (_cut(len(stream), cut), [len(stream)]):
        came: Result = MORE
        for edge in edges:
            if came == MORE:
                came = _parse(stream[:edge])
        assert came == expected, f"{came} came, where was due {expected}: {stream!r}"


def encode(stream: bytes, *, start: int = 0, cut: int = 0) -> bytes:
    """Make an input of the bytes of a connection."""
    return bytes([start, cut]) + stream


def _parse(data: bytes) -> Result:
    try:
        found = parse_header(data)
    except HeaderError:
        return BAD
    if found is None:
        assert len(data) < LONGEST, "more is waited for than the longest header"
        return MORE
    assert 0 < found.size <= min(len(data), LONGEST)
    return found.size, found.address


def _build(fields: bytes) -> None:
    """Build headers of both versions from these bytes; each must give the address that it was built from."""
    fields = fields.ljust(38, b"\0")
    if fields[0] & 1:
        client, server = ip_address(fields[1:17]), ip_address(fields[17:33])
    else:
        client, server = ip_address(fields[1:5]), ip_address(fields[5:9])
    ports = int.from_bytes(fields[33:35]), int.from_bytes(fields[35:37])
    tlvs = fields[38:538]
    for header in (line(client, server, *ports), binary(client, server, *ports, tlvs)):
        if len(header) > LONGEST:
            assert _parse(header) == BAD
            continue
        found = parse_header(header + b"TIME\r\n")
        assert isinstance(found, Header)
        assert found.size == len(header)
        assert found.address == _client(client, ports[0])


def _cut(size: int, cut: int) -> list[int]:
    """Return the ends of the pieces: 0 gives single bytes, else the ends depend on `cut`."""
    if cut == 0:
        return list(range(1, size + 1))
    chance = random.Random(cut)
    return sorted({*chance.sample(range(1, size + 1), min(size, cut % 7)), size})


def _client(address: IPv4Address | IPv6Address, port: int) -> tuple[str, int]:
    """Return the client's address as it must come out."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return str(mapped), port
    text = str(address)
    if isinstance(address, IPv6Address) and 0x10000 <= int(address) < 1 << 32:
        text = f"::{IPv4Address(int(address))}"  # as the C library writes an address of 96 zero bits
    return text, port


def foresee(stream: bytes) -> Result:
    """Decide as the specification says: slowly, and on the whole stream."""
    for start, decide in ((SIGNATURE, _foresee_binary), (b"PROXY ", _foresee_line)):
        shorter = min(len(start), len(stream))
        if start[:shorter] == stream[:shorter]:
            return decide(stream) if shorter == len(start) else MORE
    return BAD


def _foresee_line(stream: bytes) -> Result:
    ends = [at for at, pair in enumerate(pairwise(stream[:LONGEST_LINE])) if bytes(pair) == b"\r\n"]
    if not ends:
        return BAD if len(stream) >= LONGEST_LINE else MORE
    words = stream[: ends[0]].decode("latin-1").split(" ")
    size = ends[0] + 2
    if words[1] == "UNKNOWN":
        return size, None
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        return BAD
    kind = IPv4Address if words[1] == "TCP4" else IPv6Address
    try:
        addresses = [kind(word) for word in words[2:4] if "%" not in word and "/" not in word]
        ports = [int(word) for word in words[4:]]
    except ValueError:
        return BAD
    plain = all(str(port) == word and 0 <= port <= 65535 for port, word in zip(ports, words[4:], strict=True))
    if len(addresses) != 2 or not plain:
        return BAD
    return size, _client(addresses[0], ports[0])


def _foresee_binary(stream: bytes) -> Result:
    _, _, rest = stream.partition(SIGNATURE)
    version, command = divmod(rest[0], 16) if rest else (2, 1)
    family, transport = divmod(rest[1], 16) if rest[1:] else (0, 0)
    if version != 2 or command > 1 or (command == 1 and (family > 3 or transport > 2)):
        return BAD
    if len(rest) < 4:
        return MORE
    length = rest[2] * 256 + rest[3]
    known = command == 1 and family > 0 and transport > 0
    if 16 + length > LONGEST or (known and length < (0, 12, 36, 216)[family]):
        return BAD
    block = rest[4 : 4 + length]
    if len(block) < length:
        return MORE
    if not known or family == 3:
        return 16 + length, None
    width = 4 * family * family  # 4 and 16
    return 16 + length, _client(ip_address(block[:width]), block[2 * width] * 256 + block[2 * width + 1])
