"""The address of a server as a word of the command line."""

import re
from ipaddress import IPv6Address

_LAST_PORT = 65_535
_EXPECTED = "HOST or HOST:PORT, as in "


def parse_address(text: str, default: int) -> tuple[str, int]:
    """Parse HOST, HOST:PORT, an IPv6 address, or [IPv6]:PORT, and return host and port.

    default: the port without PORT. Raises ValueError that says what is expected.
    """
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::([0-9]{1,5}))?", text)
    plain = re.fullmatch(r"([^:\[\]/\s]+)(?::([0-9]{1,5}))?", text)
    if re.fullmatch(r"[0-9]+", text):  # the system would take 45000 for the host 0.0.175.200
        meant = text if len(text) <= len(str(_LAST_PORT)) and 0 < int(text) <= _LAST_PORT else default
        raise ValueError(f"{_EXPECTED}127.0.0.1:{meant}")
    if match := bracketed or plain:
        host, port = match[1], int(match[2] or default)
    elif _is_ipv6(text):
        host, port = text, default
        address, _, more = text.partition("%")
        zone, colon, rest = more.partition(":")
        if colon:  # Python takes it for a part of the zone
            raise ValueError(f"brackets: [{address}%{zone}]:{rest if rest.isdecimal() else default}")
    else:
        host, port = "", 0
    if not (host and 0 < port <= _LAST_PORT):
        raise ValueError(f"{_EXPECTED}[::1]:{default}")
    return host, port


def _is_ipv6(text: str) -> bool:
    try:
        return bool(IPv6Address(text))
    except ValueError:
        return False
