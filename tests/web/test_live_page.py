"""What the live page shows: its history, its rules for what is wrong, its tree of tasks. No browser."""

import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trio
from trio.testing import MockClock

from tests.helpers.program import serving
from tests.helpers.scrape import fetch
from tests.helpers.servers import NOW, PATIENCE, authority, open_tls, trusting
from tests.helpers.service_manager import Told
from triojam.core.counters import Counters
from triojam.core.reasons import AcceptError, Listener, Refusal, Rejection, Reload, SendError
from triojam.serving.clock import Clock
from triojam.web.kernel_clock import KernelClock
from triojam.web.metrics import Moment
from triojam.web.page import tasks
from triojam.web.page.history import KEPT_SECONDS, WINDOW_SECONDS, Reading, quantile
from triojam.web.page.live_page import LivePage
from triojam.web.page.problems import Facts, Level, find_problems, make_headline
from triojam.web.page.tasks import MOST_BRANCHES, MOST_TASKS, NAMES, Branch, task_tree

ALL = -1.0
DAY = 86_400.0


class Stage:
    """A page, with a server made of numbers.

    clock: the served time. ends: of certificates. dropped, evicted: of log lines and sources.
    """

    def __init__(self, zone: tzinfo | None = UTC) -> None:
        self.counters = Counters()
        self.counters.ready = True
        self.counters.connections_limit = 100
        self.clock = NOW
        self.kernel: KernelClock | None = KernelClock(
            synchronized=True, max_error=0.004, offset=0, leap_state=0
        )
        self.ends: dict[Listener, float] = {}
        self.dropped = self.evicted = 0
        self.not_ready: str | None = None
        self.page = LivePage(
            self._read,
            not_ready=lambda: self.not_ready,
            zone=lambda: zone,
            listeners={"time": [("0.0.0.0", 45000), ("::", 45000)], "TLS": []},
            version="1.2.3",
        )

    def content(self, since: float = ALL) -> dict[str, Any]:
        """Return the content as JSON has it."""
        content: dict[str, Any] = json.loads(json.dumps(self.page.content(since)))
        return content

    def rows(self, since: float = ALL) -> list[dict[str, Any]]:
        """Return the history, each row by the names of its columns."""
        history = self.content(since)["history"]
        return [dict(zip(history["columns"], row, strict=True)) for row in history["rows"]]

    def problems(self) -> dict[str, str]:
        """Return the level of each problem, by its name."""
        return {each["name"]: each["level"] for each in self.content()["problems"]}

    def answer(self, times: int, seconds: float = 0.0002) -> None:
        """Count requests with the right answer."""
        self.counters.requests += times
        self.counters.responses += times
        self.counters.request_duration.observe(seconds, times)

    def _read(self) -> Moment:
        return Moment(self.counters, self.clock, self.kernel, self.dropped, self.evicted, self.ends)


@pytest.fixture
async def stage(nursery: trio.Nursery) -> Stage:
    """A stage whose page reads each second. The clock is that of the test, which must ask for it itself."""
    stage = Stage()
    nursery.start_soon(stage.page.run)
    await trio.sleep(0.5)  # between two readings
    return stage


async def test_the_history_has_five_minutes(stage: Stage, autojump_clock: MockClock) -> None:
    """After 301 seconds the history has 300 rows, a second apart, and the first second is gone."""
    stage.answer(7)
    await trio.sleep(1)
    assert [row["responses"] for row in stage.rows()] == [7]
    await trio.sleep(KEPT_SECONDS - 1)
    rows = stage.rows()
    assert len(rows) == KEPT_SECONDS
    assert all(abs(later["at"] - row["at"] - 1) < 0.01 for row, later in pairwise(rows))
    assert rows[0]["responses"] == 7
    await trio.sleep(1)
    rows = stage.rows()
    assert len(rows) == KEPT_SECONDS
    assert not any(row["responses"] for row in rows)


async def test_a_row_has_the_rates_of_its_second(stage: Stage, autojump_clock: MockClock) -> None:
    """Each number of a row is what came in its second; connections are those at its end."""
    c = stage.counters
    stage.answer(40)
    c.requests += 11
    c.rejected[Rejection.BAD_COMMAND] += 5
    c.rejected[Rejection.TOO_LONG] += 3
    c.send_errors[SendError.RESET] += 2
    c.send_errors[SendError.TIMEOUT] += 1
    for _ in range(4):
        c.opened()
    for reason in (Refusal.BUSY, Refusal.DENIED, Refusal.DENIED):
        c.refused(reason)
    c.loop_lag.observe(0.0007)
    c.clock_steps += 1
    await trio.sleep(1)
    row, *_ = stage.rows()
    del row["at"]
    assert {name: value for name, value in row.items() if name not in ("p50", "p99", "lag")} == {
        "requests": 51, "responses": 40, "rejected": 8, "refused": 3, "send_errors": 3,
        "connections": 4, "clock_steps": 1,
    }  # fmt: skip
    assert 0.0001 < row["p50"] < row["p99"] <= 0.00025
    assert 0.0005 < row["lag"] <= 0.001
    await trio.sleep(1)
    assert list(stage.rows()[1].values())[1:] == [0, 0, 0, 0, 0, 4, None, None, None, 0]


async def test_a_time_without_readings_is_a_gap(stage: Stage, autojump_clock: MockClock) -> None:
    """When the process has stood still, a row of nothing stands between two others: the charts have a gap."""
    await trio.sleep(2)
    autojump_clock.jump(60)
    await trio.sleep(1)
    rows = stage.rows()
    (place,) = [n for n, row in enumerate(rows) if row["responses"] is None]
    gap, after = rows[place : place + 2]
    assert [value for name, value in gap.items() if name != "at"] == [None] * (len(gap) - 1)
    assert after["responses"] == 0
    assert after["at"] - gap["at"] > 50


async def test_since_bounds_the_history(stage: Stage, autojump_clock: MockClock) -> None:
    """Only rows after `since` are sent."""
    await trio.sleep(20)
    rows = stage.rows()
    for place, row in enumerate(rows):
        assert stage.rows(since=row["at"]) == rows[place + 1 :]


async def test_quantiles_forget_after_ten_seconds(stage: Stage, autojump_clock: MockClock) -> None:
    """The quantiles are those of the last ten seconds: older answers do not count, and none is no number."""
    stage.answer(100, 0.9)
    await trio.sleep(1)
    assert stage.content()["window"]["p50"] > 0.5
    await trio.sleep(WINDOW_SECONDS - 1)
    stage.answer(100, 0.0002)
    assert stage.content()["window"]["p50"] > 0.5
    await trio.sleep(1)
    window = stage.content()["window"]
    assert (window["seconds"], window["responses"]) == (10, 100)
    assert window["p99"] <= 0.00025
    await trio.sleep(WINDOW_SECONDS)
    window = stage.content()["window"]
    assert (window["p50"], window["p99"], window["success"]) == (None, None, None)


async def test_success_is_the_share_of_the_answers_due(stage: Stage, autojump_clock: MockClock) -> None:
    """Answers that the server owed and did not deliver lower the success; a client's own fault does not."""
    stage.answer(97)
    stage.counters.rejected[Rejection.DRAINING] += 1
    stage.counters.send_errors[SendError.TIMEOUT] += 1
    stage.counters.connections_rejected[Refusal.BUSY] += 1
    stage.counters.rejected[Rejection.BAD_COMMAND] += 50
    stage.counters.send_errors[SendError.RESET] += 50
    stage.counters.connections_rejected[Refusal.DENIED] += 50
    await trio.sleep(1)
    assert stage.content()["window"]["success"] == 0.97


@pytest.mark.parametrize(
    ("counts", "rank", "value"),
    [
        ([0, 0, 0, 0], 0.5, None), ([0, 10, 0, 0], 0.5, 1.5), ([10, 0, 0, 0], 0.99, 0.99),
        ([0, 0, 0, 5], 0.5, 4), ([1, 0, 1, 0], 0.5, 1),
    ],
)  # fmt: skip
def test_quantiles_are_those_of_prometheus(counts: list[int], rank: float, value: float | None) -> None:
    """A quantile interpolates within a bucket; above the last bound it is that bound."""
    assert quantile((1.0, 2.0, 4.0), counts, rank) == value


@pytest.mark.parametrize(
    "zone", [ZoneInfo("UTC"), ZoneInfo("Asia/Jakarta"), ZoneInfo("America/St_Johns"), None], ids=str
)
@pytest.mark.parametrize("now", [NOW, 1_700_000_000.999, 1_700_000_000.0])
async def test_the_time_is_the_served_one(zone: tzinfo | None, now: float) -> None:
    """The time is that of an answer, with its zone and the fraction of its second."""
    stage = Stage(zone)
    stage.clock = now
    content = stage.content()
    assert f"JAM {content['time']}\r\n".encode() == Clock(zone=zone, now=lambda: now).jam()
    assert content["fraction"] == round(now % 1, 3)
    there = datetime.fromtimestamp(now, zone).astimezone(zone)
    offset = there.utcoffset()
    assert offset is not None
    hours, minutes = map(int, content["utc_offset"].split(":"))
    assert timedelta(hours=hours, minutes=minutes if hours >= 0 else -minutes) == offset
    name = there.tzname() if zone is None else str(zone)
    assert content["zone"] == (f"{name}, the system's zone" if zone is None else name)


async def test_the_page_says_which_server_it_is(stage: Stage, autojump_clock: MockClock) -> None:
    """The content names host, port, listeners, version, process and how long it runs."""
    content = stage.content()
    assert re.fullmatch(r".+:45000", content["name"])
    assert content["listeners"] == {"time": "port 45000 (IPv4 and IPv6)"}
    assert content["version"] == "1.2.3"
    assert content["uptime"] == 0.5


QUIET = Reading(
    at=10.0, requests=0, responses=0, rejected={}, refused={}, send_errors={}, accept_errors={},
    internal_errors=0, clock_steps=0, log_messages_dropped=0, client_table_evictions=0, connections=0,
    durations=[0] * 15, lags=[0] * 13,
)  # fmt: skip
FINE = Facts(
    not_ready=None, connections=3, limit=100, in_flight=2, window=QUIET, internal_errors=0,
    synchronized=True, clock_steps=0, certificates={Listener.TIME: 15 * DAY}, reload_failed=False,
)  # fmt: skip


def seen(**changes: Any) -> Facts:
    """Return good facts with changes; those of a reading go into the window."""
    own = {each.name for each in fields(Facts)} & changes.keys()
    window = {name: value for name, value in changes.items() if name not in own}
    return replace(FINE, window=QUIET._replace(**window), **{name: changes[name] for name in own})


def bucket(place: int, size: int, number: int = 1) -> list[int]:
    """Return counts with observations in one bucket."""
    return [number * (place == each) for each in range(size)]


WARNING, WRONG = Level.WARNING, Level.WRONG
RULES: list[tuple[dict[str, Any], Level, str, str]] = [
    ({"not_ready": "starting"}, WARNING, "starting", "the server does not take clients yet"),
    ({"not_ready": "draining"}, WARNING, "draining", "the server stops; 3 connections left"),
    ({"connections": 80}, WARNING, "nearly full", "80 of 100 connections are open"),
    ({"connections": 100}, WRONG, "full", "100 of 100 connections are open; new clients are refused"),
    (
        {"refused": {Refusal.BUSY: 19_434, Refusal.DENIED: 1, Refusal.PER_SOURCE: 0}},
        WRONG, "refusing", "19,435 clients refused in the last 10 s: 19,434 busy, 1 denied",
    ),
    ({"refused": {Refusal.DENIED: 1}}, WARNING, "refusing", "1 client refused"),
    ({"accept_errors": {AcceptError.EMFILE: 7}}, WRONG, "accepting fails", "7 EMFILE"),
    ({"send_errors": {SendError.RESET: 2}}, WARNING, "send errors", "2 answers not delivered"),
    ({"lags": bucket(8, 13)}, WARNING, "event loop lag", "0.248 s late"),
    ({"lags": bucket(11, 13)}, WRONG, "event loop lag", "4.96 s late"),
    ({"lags": bucket(12, 13)}, WRONG, "event loop lag", "5 s late or more"),
    ({"durations": bucket(10, 15, 400), "responses": 400}, WARNING, "slow answers", "takes 0.0995 s"),
    ({"synchronized": False}, WARNING, "clock not synchronized", "no time service"),
    ({"clock_steps": 2}, WARNING, "clock set", "2 times in the last 5 min"),
    ({"certificates": {Listener.TIME: 14 * DAY - 1}}, WARNING, "time certificate ends soon", "in 13 days"),
    ({"certificates": {Listener.METRICS: 3 * DAY - 1}}, WRONG, "metrics certificate ends soon", "in 2 days"),
    ({"certificates": {Listener.TIME: 7200}}, WRONG, "time certificate ends soon", "in 2 hours"),
    ({"certificates": {Listener.TIME: -DAY}}, WRONG, "time certificate ended", "1 day ago"),
    ({"internal_errors": 2}, WARNING, "internal errors", "2 unexpected exceptions since the start"),
    ({"reload_failed": True}, WARNING, "reload failed", "old settings"),
    ({"log_messages_dropped": 3}, WARNING, "log lines dropped", "3 lines in the last 10 s"),
    ({"client_table_evictions": 1}, WARNING, "sources forgotten", "1 source in the last 10 s"),
    ({"in_flight": -1}, WRONG, "accounts do not balance", "-1 requests"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "level", "name", "part"), RULES, ids=lambda value: str(value)[:40])
def test_each_rule_finds_its_problem(changes: dict[str, Any], level: Level, name: str, part: str) -> None:
    """Each rule finds one problem, with its level, its name, and its numbers in the text."""
    (problem,) = find_problems(seen(**changes))
    assert (problem["level"], problem["name"]) == (level, name)
    assert part in problem["text"]


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"connections": 79}, {"synchronized": None}, {"in_flight": 0},
        {"refused": dict.fromkeys(Refusal, 0)}, {"accept_errors": {AcceptError.ECONNABORTED: 5}},
        {"lags": bucket(7, 13)}, {"durations": bucket(10, 15, 399), "responses": 399},
        {"durations": bucket(9, 15, 400), "responses": 400}, {"certificates": {Listener.TIME: 14 * DAY}},
        {"rejected": 1000},
    ],
    ids=str,
)  # fmt: skip
def test_rules_are_silent_below_their_thresholds(changes: dict[str, Any]) -> None:
    """What is just good is no problem: a client's bad lines are not the server's fault."""
    assert find_problems(seen(**changes)) == []


def test_a_new_internal_error_is_wrong() -> None:
    """An unexpected exception of long ago is amber, one of the last seconds is red."""
    facts = replace(FINE, internal_errors=2, window=QUIET._replace(internal_errors=1))
    assert [each["level"] for each in find_problems(facts)] == [WRONG]


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({}, Level.GOOD, "ready"),
        ({"synchronized": False}, WARNING, "ready, clock not synchronized"),
        ({"not_ready": "draining"}, WARNING, "draining"),
        ({"not_ready": "starting"}, WARNING, "starting"),
        ({"synchronized": False, "connections": 100}, WRONG, "full and 1 more"),
        ({"synchronized": False, "clock_steps": 1}, WARNING, "ready, clock not synchronized and 1 more"),
        ({"not_ready": "draining", "connections": 100}, WRONG, "draining, full"),
        ({"not_ready": "draining", "connections": 100, "clock_steps": 1}, WRONG, "draining, full and 1 more"),
    ],
)
def test_the_headline_is_the_worst_problem(changes: dict[str, Any], level: Level, text: str) -> None:
    """The headline names the state and the worst problem; only without any it is plainly ready."""
    facts = seen(**changes)
    assert make_headline(facts.not_ready, find_problems(facts)) == {"level": level, "text": text}


async def test_problems_pass(stage: Stage, autojump_clock: MockClock) -> None:
    """Refused clients are a problem for ten seconds, a step of the clock for five minutes."""
    stage.counters.refused(Refusal.BUSY)
    stage.counters.clock_steps += 1
    await trio.sleep(1)
    assert stage.problems() == {"refusing": "wrong", "clock set": "warning"}
    await trio.sleep(WINDOW_SECONDS)
    assert stage.problems() == {"clock set": "warning"}
    await trio.sleep(KEPT_SECONDS)
    assert stage.problems() == {}


async def test_a_failed_reload_is_wrong_until_the_next(stage: Stage, autojump_clock: MockClock) -> None:
    """A failed reload is a problem, however long ago, until a reload succeeds."""
    reloads = stage.counters.config_reloads
    for result, failed in (
        (Reload.SUCCESS, False), (Reload.FAILURE, True), (Reload.FAILURE, True), (Reload.SUCCESS, False),
        (Reload.FAILURE, True),
    ):  # fmt: skip
        reloads[result] += 1
        await trio.sleep(KEPT_SECONDS)
        content = stage.content()
        assert ("reload failed" in stage.problems()) == content["last_reload_failed"] == failed


async def test_the_content_has_everything_that_may_be_wrong(stage: Stage, autojump_clock: MockClock) -> None:
    """Full, draining, not synchronized, an ended certificate and dropped things show in the content."""
    for _ in range(100):
        stage.counters.opened()
    stage.not_ready = "draining"
    stage.kernel = KernelClock(synchronized=False, max_error=16.0, offset=0, leap_state=0)
    stage.ends = {Listener.TIME: NOW - DAY, Listener.METRICS: NOW + 30 * DAY}
    stage.dropped, stage.evicted = 2, 3
    await trio.sleep(1)
    content = stage.content()
    assert set(stage.problems()) == {
        "full", "draining", "clock not synchronized", "time certificate ended", "log lines dropped",
        "sources forgotten",
    }  # fmt: skip
    assert content["problems"][0]["level"] == "wrong"
    assert content["state"] == "draining"
    assert content["certificates"]["metrics"]["seconds_left"] == 30 * DAY
    assert content["certificates"]["time"]["ends"] == "2023-11-14 12:34 UTC"
    assert (content["log_messages_dropped"], content["sources_forgotten"]) == (2, 3)


def every(branch: Branch) -> Iterator[Branch]:
    """Yield a branch and all below it."""
    yield branch
    for nursery in branch["nurseries"]:
        for task in nursery["tasks"]:
            yield from every(task)


async def test_a_tree_of_many_tasks_is_bounded() -> None:
    """Thousands of clients are one line with their number, and of thousands of nurseries some are shown."""

    async def client() -> None:
        await trio.sleep_forever()

    async def owner() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)

    async with trio.open_nursery() as nursery:
        for _ in range(MOST_TASKS + 500):
            nursery.start_soon(client)
        await trio.testing.wait_all_tasks_blocked()
        assert MOST_TASKS + 500 in {each["times"] for each in every(task_tree())}
        for _ in range(MOST_BRANCHES * 2):
            nursery.start_soon(owner)
        await trio.testing.wait_all_tasks_blocked()
        assert sum(bool(each["nurseries"]) for each in every(task_tree())) <= MOST_BRANCHES
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", [each for each in NAMES if not each.startswith("<")])
def test_taught_names_are_of_tasks_that_exist(name: str) -> None:
    """Each name in the table is that of a function, or of one within it."""
    outer, _, inner = name.partition(".<locals>.")
    function = pkgutil.resolve_name(outer)
    assert callable(function)
    assert not inner or f"async def {inner}(" in inspect.getsource(function)


async def test_no_private_name_shows(tmp_path: Path) -> None:
    """With clients of every kind, each task of a server has a taught name, and so has each nursery."""
    pem = authority().issue_cert("localhost")
    file = tmp_path / "c.pem"
    file.write_bytes(pem.private_key_and_cert_chain_pem.bytes())
    words = ["--tls-port", "0", "--tls-certificate", str(file)]
    with Told.at(tmp_path / "notify") as told:
        async with serving(*words, NOTIFY_SOCKET=told.address, WATCHDOG_USEC="60000000") as program:
            (tls,) = program.log[-1]["tls"]
            host, port = tls.rsplit(":", 1)
            async with (
                await program.connect() as quick,
                await program.connect() as slow,
                await open_tls((host, int(port)), trusting()) as secure,
                await trio.open_tcp_stream(*program.web) as scraper,
            ):
                await quick.send_all(b"TIME\r\n")
                await slow.send_all(b"HELLO\r\nTI")
                await secure.send_all(b"TIME\r\n")
                await scraper.send_all(b"GET /metrics")
                await told.until("WATCHDOG")
                names: set[str] = set()
                with trio.fail_after(PATIENCE):
                    while not {"connection", "metrics port: connection"} <= names:
                        status = json.loads((await fetch(program.web, "/status")).text)
                        branches = list(every(status["tasks"]))
                        names = {each["name"] for each in branches}
                assert names == {each.name for each in NAMES.values()}
                nurseries = {nursery["name"] for each in branches for nursery in each["nurseries"]}
                assert nurseries == {name for each in NAMES.values() for name in each.nurseries}
                assert sum(each["times"] for each in branches if each["name"] == "connection") >= 2


def test_a_foreign_task_keeps_its_name() -> None:
    """The task of a program that embeds the server is shown by its own name."""
    assert tasks._short("my_program.main.<locals>.worker") == "my_program.main.worker"
