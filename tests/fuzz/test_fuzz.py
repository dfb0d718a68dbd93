"""What fuzzing stands on: the committed inputs, the oracle that judges them, a short run of the machine."""

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz import protocol
from tests.fuzz import settings as settings_file
from tests.fuzz.connection import TRANSPORTS, over
from tests.fuzz.oracle import JAM, Law, Oracle
from tests.helpers.vectors import VECTORS, J, Vector

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: repr(vector.sent[:24]))
def test_the_oracle_knows_the_table(vector: Vector) -> None:
    """The model that judges the protocol says of every row of its table what the row says."""
    oracle = Oracle(Law())
    oracle.receive(vector.sent)
    if vector.ended:
        oracle.end_of_stream()
    assert oracle.answers == [JAM if answer == J else answer for answer in vector.answers]
    assert [reason for reason, _ in oracle.rejected] == vector.rejected
    assert (oracle.requests, oracle.end) == (vector.requests, vector.end)


def test_the_corpus_of_the_protocol() -> None:
    """Every committed input of the protocol's target passes, without a fuzzer."""
    inputs = sorted((CORPUS / "protocol").iterdir())
    assert inputs
    for each in inputs:
        protocol.try_one(each.read_bytes())


def test_the_corpus_of_the_settings() -> None:
    """Every committed input of the settings' target passes, without a fuzzer."""
    inputs = sorted((CORPUS / "settings").iterdir())
    assert inputs
    for each in inputs:
        settings_file.try_one(each.read_bytes())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_connections(transport: str) -> None:
    """Whatever clients, operator and clocks do, answers and counters are those of the model."""
    once = settings(max_examples=15, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(over(transport), settings=once)
