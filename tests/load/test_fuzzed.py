"""What the clients' fuzzer and a review of the generator found, in simulated time."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.hostile import FRAGMENTS, PAUSES, Action, Do, HostileServer, free_address
from tests.fuzz.simulated import OUTAGE, SLOW, Case, run_load
from triojam.load.measure.clock import ServerClock
from triojam.load.measure.generator import LoadGenerator
from triojam.load.plan import Mix, Plan
from triojam.load.worker import Decoder, encoded

BUSY = (Do.SEND, FRAGMENTS.index(b"ERROR busy: x\r\n"), b"")
TOO_LONG = (Do.SEND, FRAGMENTS.index(b"x" * 600), b"")
ANSWERS: Action = (Do.ANSWER_ALL, 0, b"")
REFUSES: Action = (Do.REFUSE, PAUSES.index(30.0), b"")


def run(*script: Action, then: tuple[Action, ...] = (), plan: dict[str, Any], **case: Any) -> LoadGenerator:
    """Run a load against a server that follows this script; `then` is for every second connection."""
    server = HostileServer(free_address(), [list(script), list(then or script)])
    try:
        return run_load(Case(Plan(**plan), **case), server)
    finally:
        server.close()


@pytest.mark.parametrize("ends", [{"stops": 0.2}, {"cuts": 0.2}])
def test_an_interrupted_open_loop_counts_only_requests_that_were_due(ends: dict[str, Any]) -> None:
    """Requests that would have been due after the interrupt do not count as never sent."""
    plan = {"connections": 1, "rate": 100.0, "seconds": 10.0, "patience": 5.0}
    tally = run(plan=plan, **ends).tally
    assert tally.sent == 1
    assert 19 <= tally.never_sent <= 22


def test_a_slow_client_leaves_out_only_requests_that_were_due() -> None:
    """After an interrupt, requests that would have been due later are not blamed on the client."""
    plan = {"connections": 1, "rate": 100.0, "seconds": 10.0}
    tally = run(ANSWERS, plan=plan, stops=0.01, sleeps=(0.01, 0.4)).tally
    assert 20 < tally.left_out <= 42


def test_an_open_loop_that_gave_up_counts_only_requests_that_were_due() -> None:
    """Requests that would have been due after the load has given up do not count as never sent."""
    plan = {"connections": 1, "rate": 100.0, "seconds": 60.0, "patience": 0.3}
    load = run(REFUSES, (Do.RESET, 0, b""), plan=plan)
    assert load.gave_up
    assert load.tally.sent + load.tally.never_sent <= (load.ended - load.began) * 100 + 1


@pytest.mark.parametrize("edge", [True, False])
@pytest.mark.parametrize(
    ("says", "causes"),
    [
        (TOO_LONG, "something else"),
        ((Do.SEND_BYTES, 2, b"ERR"), "no connection in time"),
        ((Do.SEND_BYTES, 2, b"hi\n"), "something else"),
    ],
)
def test_a_server_that_speaks_before_the_request_ends_the_load(
    says: Action, causes: str, *, edge: bool
) -> None:
    """What another kind of server says at once is a failed connection, and the load gives up."""
    plan = {"connections": 1, "requests": 1, "patience": 0.3}
    load = run(says, plan=plan, halves=True, piece=64, edge=edge)
    assert (load.gave_up, load.tally.sent) == (True, 0)
    assert load.tally.unconnected.keys() == {causes}


def test_a_server_that_is_always_busy_ends_the_load() -> None:
    """If each connection is refused before its request is out, the load gives up after its patience."""
    load = run(BUSY, (Do.CLOSE, 0, b""), plan={"connections": 2, "requests": 4, "patience": 0.3}, halves=True)
    assert (load.gave_up, load.tally.sent) == (True, 0)
    assert load.tally.unasked.keys() == {"ERROR busy"}


def test_a_refused_connection_does_not_end_the_load_while_others_are_answered() -> None:
    """Only a load that gets no answers any more gives up."""
    plan = {"connections": 2, "seconds": 2 * OUTAGE, "think_time": 0.1}
    load = run(REFUSES, ANSWERS, then=((Do.RESET, 0, b""),), plan=plan)
    assert load.tally.unconnected.keys() == {"connection refused"}
    assert not load.gave_up
    assert load.ended - load.began >= 2 * OUTAGE


def test_a_client_that_stood_still_reads_before_it_gives_up() -> None:
    """A process that was stopped and continued takes the answers that have arrived meanwhile."""
    pause = (Do.PAUSE, PAUSES.index(0.06), b"")
    plan = {"connections": 3, "requests": 3, "patience": 0.3}
    tally = run(pause, ANSWERS, plan=plan, sleeps=(0.03, 10.0)).tally
    assert (tally.answered, tally.failed) == (3, {})


def test_a_client_that_stood_still_sends_the_rest_before_it_gives_up() -> None:
    """A line of which the kernel has taken only a part is not the server's fault."""
    plan = {"connections": 6, "requests": 1, "patience": 2.0, "warm_up": 0.1}
    mix = Mix.parse("TIME:2,split:2,HELLO:1")
    load = run(ANSWERS, plan=plan | {"mix": mix}, step=SLOW, halves=True, sleeps=(0.03, 10.0))
    assert not load.tally.failed


def test_a_time_from_long_ago_is_wrong_even_if_it_arrived_before_the_request() -> None:
    """A moment of arrival that is older than the request does not make every answer right."""
    clock = ServerClock(lambda now: now)
    assert clock.fits(110, asked=110.0, now=100.0)
    assert not clock.fits(50, asked=110.0, now=100.0)


@given(
    st.lists(st.binary(max_size=30) | st.integers(), max_size=5), st.lists(st.integers(0, 200), max_size=9)
)
def test_messages_of_a_worker_are_cut_anywhere(messages: list[Any], cuts: list[int]) -> None:
    """The decoder gives each message once and whole, however its bytes arrive."""
    stream = b"".join(encoded(each) for each in messages)
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    decoder = Decoder()
    for start, end in pairwise(edges):
        decoder.feed(stream[start:end])
        whole = len(decoder.messages)
        assert sum(len(encoded(each)) for each in messages[:whole]) <= end
    assert list(decoder.messages) == messages


def test_the_pause_after_an_error_line_is_not_the_delay_of_the_client() -> None:
    """The load waits whether the server closes the connection; this wait is for the server."""
    plan = {"connections": 1, "rate": 400.0, "seconds": 0.5, "mix": Mix.parse("HELLO:1")}
    tally = run(ANSWERS, plan=plan).tally
    assert tally.rejected > 10
    assert (tally.late, tally.left_out) == (0, 0)
