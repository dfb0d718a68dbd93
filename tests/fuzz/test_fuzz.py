"""The committed inputs of the fuzzers, the oracle, and a short run of the state machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz import clients, files, protocol, proxy, web
from tests.fuzz import settings as settings_file
from tests.fuzz.connection import TRANSPORTS, over
from tests.fuzz.oracle import JAM, Law, Oracle
from tests.helpers.proxy_headers import BAD_HEADERS, GOOD_HEADERS
from triojam.verify.vectors import VECTORS, J, Vector

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: repr(vector.sent[:24]))
def test_oracle_agrees_with_the_vectors(vector: Vector) -> None:
    """The oracle gives the result of each row of the table."""
    oracle = Oracle(Law())
    oracle.receive(vector.sent)
    if vector.ended:
        oracle.end_of_stream()
    assert oracle.answers == [JAM if answer == J else answer for answer in vector.answers]
    assert [reason for reason, _ in oracle.rejected] == vector.rejected
    assert (oracle.requests, oracle.end) == (vector.requests, vector.end)


@pytest.mark.parametrize(
    ("target", "try_one"),
    [
        ("protocol", protocol.try_one),
        ("proxy", proxy.try_one),
        ("settings", settings_file.try_one),
        ("files", files.try_one),
        ("clients", clients.try_one),
    ],
)
def test_committed_inputs_pass(target: str, try_one: Callable[[bytes], None]) -> None:
    """Every committed input of each target passes without a fuzzer."""
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for each in inputs:
        try_one(each.read_bytes())


def test_committed_requests_pass() -> None:
    """Every committed input of the metrics port passes without a fuzzer."""
    inputs = sorted((CORPUS / "web").iterdir())
    assert inputs
    try:
        for each in inputs:
            web.try_one(each.read_bytes())
    finally:
        web.close()


@pytest.mark.parametrize(("header", "address"), GOOD_HEADERS.values(), ids=GOOD_HEADERS)
def test_oracle_knows_the_good_headers(header: bytes, address: tuple[str, int] | None) -> None:
    """The oracle of the PROXY header gives the client of each good one."""
    assert proxy.foresee(header + b"TIME") == (len(header), address)


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_oracle_knows_the_bad_headers(header: bytes) -> None:
    """The oracle of the PROXY header refuses each bad one."""
    assert proxy.foresee(header) == proxy.BAD


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"Traceback\r\n\r\n",
    ],
)
def test_oracle_finds_bytes_that_are_no_answers(data: bytes) -> None:
    """The oracle of the metrics port finds answers that are cut, too long, or not HTTP."""
    assert not web.are_answers(data, heads=True, cut_off=False)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_server_agrees_with_the_model(transport: str) -> None:
    """In random runs of clients, operator and clocks, answers and counters are those of the model."""
    once = settings(max_examples=15, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(over(transport), settings=once)
