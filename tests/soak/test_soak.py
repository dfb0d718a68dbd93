"""The soak finds each kind of fault, and a short soak passes."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.program import UNMEASURED, environment
from tests.soak.clients import AnswerError, Tally, check_time
from tests.soak.judge import EXPECTED, judge
from tests.soak.record import Record, Restarts, Round, quantile
from tests.soak.sampling import Sample

ROOT = Path(__file__).parents[2]
ROUNDS = 60
ROUND_SECONDS = 60.0
ALONE = Tally(sent=10, answered=9, rejected=1)
PROMPT = 0.1
NOON = 43_200.0


def look(seconds: float, *, requests: int = 100) -> Sample:
    """Make a sample after this number of requests, one in ten rejected, with all expected events."""
    rejections = [name for name in EXPECTED if name.startswith("triojam_rejected_total")]
    ends = [name for name in EXPECTED if name.startswith("triojam_disconnects_total")]
    refusals = [name for name in EXPECTED if name.startswith("triojam_connections_rejected_total")]
    failures = [name for name in EXPECTED if name.startswith("triojam_response_send_errors_total")]
    counts = dict.fromkeys(EXPECTED, 1.0) | {
        rejections[0]: requests // 10 - len(rejections) + 1.0,
        "triojam_requests_total": requests + len(failures),
        "triojam_responses_total": requests - requests // 10,
        "triojam_connections_total": len(ends) + len(refusals),
        "triojam_internal_errors_total": 0.0,
        "triojam_accept_errors_total{EMFILE}": 0.0,
        "triojam_log_messages_dropped_total": 0.0,
    }
    return Sample(
        seconds=seconds,
        resident=50_000,
        anonymous=40_000,
        descriptors=11,
        tasks={"main": 1, "probe": 4},
        connections=0,
        cpu=1.0,
        counts=counts,
        lags={"0.01": 99.0, "+Inf": 100.0},
    )


def steady() -> Record:
    """Make the record of an hour without a fault."""
    rounds = [
        Round(
            look(seconds, requests=100), ALONE, look(seconds + 6, requests=110), [0.001] * 100, [0.002] * 100
        )
        for seconds in (number * ROUND_SECONDS for number in range(ROUNDS))
    ]
    restarts = Restarts(Tally(sent=70, answered=70), Counter(requests=70, responses=70), moments=[30.0])
    return Record(
        seconds=ROUNDS * ROUND_SECONDS,
        rounds=rounds,
        last=look(ROUNDS * ROUND_SECONDS, requests=110),
        samples=[],
        honest=Tally(sent=600, answered=540, rejected=60),
        reloads={"success": 1, "failure": 1},
        reloaded=[40.0, 50.0],
        grave=[],
        status=0,
        restarts=restarts,
    )


def test_steady_run_has_no_faults() -> None:
    """A run without growth and with balanced counts passes."""
    assert judge(steady(), prompt=PROMPT) == []


def each_rest(record: Record, change: Callable[[Sample, int], Sample]) -> None:
    """Change the sample of each rest; the change gets the number of the round."""
    for number, each in enumerate(record.rounds):
        each.rest = change(each.rest, number)


def memory_creeps(record: Record) -> None:
    """Anonymous memory grows by 3 % in an hour."""
    each_rest(record, lambda rest, number: replace(rest, anonymous=40_000 + 20 * number))


def memory_peaks(record: Record) -> None:
    """Resident memory is high at one rest."""
    record.rounds[30].rest = replace(record.rounds[30].rest, resident=52_000)


def a_descriptor_stays(record: Record) -> None:
    """From one round on there is one more descriptor."""
    each_rest(record, lambda rest, number: replace(rest, descriptors=11 + (number > 40)))


def a_task_takes_the_place_of_another(record: Record) -> None:
    """The number of tasks stays the same, but one is another."""
    record.last = replace(record.last, tasks={"main": 1, "probe": 3, "client": 1})


def a_request_is_lost(record: Record) -> None:
    """The counters of the server do not balance."""
    record.rounds[3].rest.counts["triojam_requests_total"] += 1


def a_connection_has_no_end(record: Record) -> None:
    """A connection was accepted and has no reason for its end."""
    record.last.counts["triojam_connections_total"] += 1


def an_honest_request_is_not_counted(record: Record) -> None:
    """The clients have sent one request more than the server counted."""
    record.rounds[7].alone = Tally(sent=11, answered=10, rejected=1)


def an_honest_client_is_reset(record: Record) -> None:
    """One honest client is reset."""
    record.honest.failures["reset"] += 1


def a_good_client_waits(record: Record) -> None:
    """More than one answer in a hundred is late."""
    for each in record.rounds:
        each.fresh = [0.001] * 97 + [0.2] * 3


def a_reload_is_lost(record: Record) -> None:
    """A reload was requested and not counted."""
    record.reloads["success"] += 1


def a_defence_was_never_needed(record: Record) -> None:
    """No client was denied, so the run shows nothing about it."""
    name = "triojam_connections_rejected_total{denied}"
    for each in [*record.rests, *(each.after for each in record.rounds)]:
        each.counts[name] -= 1
        each.counts["triojam_connections_total"] -= 1


def it_logs_an_error(record: Record) -> None:
    """The log has an error that is not about a reload."""
    record.grave.append("connection failed")


def it_does_not_end_well(record: Record) -> None:
    """The exit status of the server is not 0."""
    record.status = -9


def a_restart_is_noticed(record: Record) -> None:
    """One client of the restarted server is refused."""
    record.restarts.tally.failures["refused"] += 1


def an_answer_is_lost_in_a_restart(record: Record) -> None:
    """A process counted an answer that no client received."""
    record.restarts.totals["responses"] += 1


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (memory_creeps, "anonymous memory grew by 2.2%"),
        (memory_peaks, "resident memory was 4.0% above"),
        (a_descriptor_stays, "descriptors at rest were 11, and at 2460 s 12"),
        (a_task_takes_the_place_of_another, "tasks at rest were"),
        (a_request_is_lost, "1 requests are unaccounted for"),
        (a_connection_has_no_end, "1 connections ended without a reason"),
        (an_honest_request_is_not_counted, "the clients counted 11 sent, the server 10"),
        (an_honest_client_is_reset, "an honest client: reset, 1 times"),
        (a_good_client_waits, "the p99 wait of a good client was 0.200 s"),
        (a_reload_is_lost, "1 reloads ended in success, expected 2"),
        (a_defence_was_never_needed, "never happened: triojam_connections_rejected_total{denied}"),
        (it_logs_an_error, "the server logged: connection failed"),
        (it_does_not_end_well, "exit status -9"),
        (a_restart_is_noticed, "during restarts: refused, 1 times"),
        (an_answer_is_lost_in_a_restart, "the clients counted 70 answers, the servers 71"),
    ],
)
def test_judge_finds_each_fault(spoil: Callable[[Record], None], complaint: str) -> None:
    """Growth, a loss, or a missing event makes the run fail, with a line that names it."""
    record = steady()
    spoil(record)
    assert any(complaint in fault for fault in judge(record, prompt=PROMPT)), judge(record, prompt=PROMPT)


def test_warm_up_allows_growth_but_no_loss() -> None:
    """Memory may grow in the first five minutes; a lost request is a fault even then."""
    record = steady()
    each_rest(record, lambda rest, number: replace(rest, resident=min(40_000 + 2_000 * number, 50_000)))
    assert judge(record, prompt=PROMPT) == []
    record.rounds[0].rest.counts["triojam_requests_total"] += 1
    assert any("unaccounted" in fault for fault in judge(record, prompt=PROMPT))


@pytest.mark.parametrize(
    ("answer", "asked", "now", "right"),
    [
        (b"JAM 12:00:00\r\n", NOON + 0.5, NOON + 0.6, True),
        (b"JAM 12:00:01\r\n", NOON + 0.9, NOON + 1.1, True),
        (b"JAM 00:00:00\r\n", 86_399.9, 86_400.1, True),
        (b"JAM 11:59:59\r\n", NOON + 0.1, NOON + 0.2, False),
        (b"JAM 12:00:02\r\n", NOON + 0.9, NOON + 1.1, False),
        (b"JAM 12:00:00\n", NOON, NOON, False),
    ],
)
def test_check_time_rejects_wrong_answers(answer: bytes, asked: float, now: float, *, right: bool) -> None:
    """The time of an answer must lie between the request and its arrival."""
    if right:
        check_time(answer, asked, now)
    else:
        with pytest.raises(AnswerError):
            check_time(answer, asked, now)


def test_quantile_returns_one_of_the_values() -> None:
    """A quantile is one of the values, and 0 without values."""
    values = [float(number) for number in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (50, 99, 100)
    assert quantile([], 0.5) == 0


@pytest.mark.xdist_group("crowds")
def test_short_soak_passes(tmp_path: Path) -> None:
    """In half a minute of everything at once, honest clients get all answers and all counts balance."""
    words = ["--minutes", "0.4", "--round", "12", "--restart", "3", "--out", str(tmp_path)]
    words += ["--prompt", "2"]  # the machine may be busy
    ended = subprocess.run(
        [sys.executable, "-m", "tests.soak", *words],
        cwd=ROOT,
        env=environment(**UNMEASURED),
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
        check=False,
    )
    assert "FAILED" not in ended.stdout
    assert ended.returncode == 0
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert figures["honest"]["sent"] > 1000
    assert "| unaccounted, at any rest | 0 |" in (tmp_path / "figures.md").read_text("utf-8")
    assert (tmp_path / "soak.svg").read_text("utf-8").startswith("<?xml")
