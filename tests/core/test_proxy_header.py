"""The PROXY header: HAProxy's bytes, the rules of the specification, and headers that broke other parsers."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.proxy_headers import (
    BAD_HEADERS,
    GOOD_HEADERS,
    LOCAL,
    SIGNATURE,
    IPAddress,
    binary,
    line,
)
from triojam.core.proxy_header import LONGEST_HEADER, LONGEST_LINE, Header, HeaderError, parse_header

Address = tuple[str, int] | None


@pytest.mark.parametrize(("data", "address"), GOOD_HEADERS.values(), ids=GOOD_HEADERS)
def test_a_good_header_gives_the_client(data: bytes, address: Address) -> None:
    """A good header gives its size and the client's address, also with bytes of the client behind it."""
    assert parse_header(data) == Header(len(data), address)
    assert parse_header(data + b"TIME\r\n") == Header(len(data), address)


@pytest.mark.parametrize(("data", "address"), GOOD_HEADERS.values(), ids=GOOD_HEADERS)
def test_a_part_of_a_good_header_is_not_decided(data: bytes, address: Address) -> None:
    """No part of a good header is taken for a whole one, or refused."""
    assert {parse_header(data[:size]) for size in range(len(data))} == {None}


@pytest.mark.parametrize("data", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_bad_header_is_refused(data: bytes) -> None:
    """A bad header is refused, and so it is with more bytes behind it."""
    for tail in (b"", b"TIME\r\n", 600 * b"\0", b"\r\n"):
        with pytest.raises(HeaderError):
            parse_header(data + tail)


def outcome(data: bytes) -> object:
    """Return what the parser says about these bytes."""
    try:
        return parse_header(data)
    except HeaderError:
        return "bad"


@pytest.mark.parametrize("data", [*BAD_HEADERS.values(), *(data for data, _ in GOOD_HEADERS.values())])
def test_more_bytes_never_change_a_decision(data: bytes) -> None:
    """Once a header is whole or bad, it stays so, whatever follows."""
    decided = [found for size in range(len(data) + 1) if (found := outcome(data[:size])) is not None]
    assert len({*decided, outcome(data + b"\r\n")}) == 1


def test_a_line_is_refused_as_soon_as_it_is_too_long() -> None:
    """CVE-2021-23351: 107 bytes without CR LF are refused, so no more of a line is ever kept."""
    assert parse_header(b"PROXY ".ljust(LONGEST_LINE - 1, b"x")) is None
    with pytest.raises(HeaderError):
        parse_header(b"PROXY ".ljust(LONGEST_LINE, b"x"))


def test_a_length_is_refused_before_its_bytes_come() -> None:
    """A length of version 2 beyond the limit is refused with its first 16 bytes."""
    assert parse_header(SIGNATURE + b"\x21\x11" + (LONGEST_HEADER - 16).to_bytes(2)) is None
    with pytest.raises(HeaderError):
        parse_header(SIGNATURE + b"\x21\x11" + (LONGEST_HEADER - 15).to_bytes(2))


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=400), st.binary())
def test_a_header_that_was_built_is_parsed(
    client: IPAddress, server: IPAddress, port: int, tlvs: bytes, rest: bytes
) -> None:
    """Both versions give the address that a header was built from, whatever is behind it."""
    if client.version != server.version:
        server = client
    mapped = getattr(client, "ipv4_mapped", None)
    for header in (line(client, server, port, 45000), binary(client, server, port, 45000, tlvs)):
        found = parse_header(header + rest)
        assert found is not None
        assert found.size == len(header)
        assert found.address is not None
        assert (ip_address(found.address[0]), found.address[1]) == (mapped or client, port)


@given(
    st.one_of(st.binary(), st.binary().map(lambda data: SIGNATURE + data), st.binary().map(b"PROXY ".__add__))
)
def test_any_bytes_are_decided_or_need_more(data: bytes) -> None:
    """Any bytes are a header within the limit, the beginning of one, or refused."""
    found = outcome(data)
    if isinstance(found, Header):
        assert found.size <= min(len(data), LONGEST_HEADER)
    elif found is None:
        assert len(data) < LONGEST_HEADER


def test_a_health_check_has_no_client() -> None:
    """LOCAL has no client, whatever its family and its addresses say."""
    for family in range(256):
        data = SIGNATURE + bytes([0x20, family]) + (12).to_bytes(2) + bytes(12)
        assert parse_header(data) == Header(len(data), None)
    assert parse_header(LOCAL) == Header(len(LOCAL), None)
