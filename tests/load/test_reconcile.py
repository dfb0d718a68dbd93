"""The balance of a load with the counters of its servers, by numbers."""

import itertools
import json
from collections import Counter, defaultdict, deque
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from triojam.load import reconcile
from triojam.load.measure.tally import Tally
from triojam.load.plan import Plan
from triojam.load.readings import Access, Counts, MetricsError, Reading
from triojam.load.reconcile import READ_INTERVAL, SUSPECT_INTERVAL, SUSPECT_SECONDS, Reconciliation
from triojam.load.result import balance
from triojam.load.result.result import Result


class Servers:
    """Servers whose readings are given; the last one of each stays. None: the server does not answer.

    times: when which server was read.
    """

    def __init__(self) -> None:
        self.readings: dict[str, deque[Reading | None]] = defaultdict(deque)
        self.times: dict[str, list[float]] = defaultdict(list)

    def say(self, url: str, *readings: Reading | None) -> None:
        """Let a server show these readings, one after the other."""
        self.readings[url] = deque(readings)

    def page(self, url: str, _access: Access) -> "Page":
        """Return the metrics of a server."""
        return Page(self, url)

    def since(self, url: str, start: float) -> list[float]:
        """Return when a server was read after this moment."""
        return [round(each - start, 6) for each in self.times[url] if each > start]


class Page:
    """The metrics of one of the servers."""

    def __init__(self, servers: Servers, url: str) -> None:
        self._servers = servers
        self._url = url

    async def read(self) -> Reading:
        """Return the next reading."""
        await trio.lowlevel.checkpoint()
        self._servers.times[self._url].append(trio.current_time())
        if self._url == "hangs" and len(self._servers.times[self._url]) > 1:
            await trio.sleep_forever()
        readings = self._servers.readings[self._url]
        reading = readings.popleft() if len(readings) > 1 else readings[0]
        if reading is None:
            raise MetricsError(f"{self._url}: connection refused")
        return reading


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    """Replace the reading of metrics over HTTP."""
    made = Servers()
    monkeypatch.setattr(reconcile, "Page", made.page)
    return made


def reading(process: float, requests: int, rejected: int = 0, **counts: int) -> Reading:
    """Make a reading in which every request is accounted for, unless there are `responses`."""
    answered = requests - rejected - counts.get("send_errors", 0)
    return Reading(process, Counts(requests, counts.pop("responses", answered), rejected, **counts))


def tally(sent: int, rejected: int = 0, closed_instead: int = 0, **failed: int) -> Tally:
    """Make the tally of a load. failed: by cause, with _ for spaces."""
    causes = Counter({cause.replace("ERROR_", "ERROR ").replace("__", " "): n for cause, n in failed.items()})
    answered = sent - rejected - causes.total()
    return Tally(sent, answered, rejected, failed=causes, closed_instead=closed_instead)


def result_of(reconciliation: Reconciliation, tally: Tally, unread: str | None = None) -> Result:
    """Make the result of a load."""
    plan = Plan(connections=1)
    return Result("a:1", plan, tally, 1.0, 0.0, reconciliation=reconciliation, unread=unread)


def sentences(reconciliation: Reconciliation, tally: Tally) -> list[str]:
    """Return the lines of the balance behind its table."""
    return balance.lines(result_of(reconciliation, tally))[3:]


CLOSES, OPEN = "The balance closes.", "The balance does not close."
FAILED = "The failed requests in the counters:"
OTHERS = "other clients sent requests meanwhile, or the server counts wrong."
NOT_NAMED = "--metrics does not name every server that replied, or the server counts wrong."
LOST = "They were lost, or counted after the last reading; all other requests balance."
ALL_READ = "each request is in a reading of the counters."

# By name: the tally, the second reading after an empty one, and what the result says.
CASES: dict[str, tuple[Tally, Reading, list[str]]] = {
    "all answered": (tally(90, rejected=2), reading(1, 90, 2), [CLOSES]),
    "answers lost on the way": (
        tally(10, reset=1, closed=1),
        reading(1, 10),
        [FAILED, "            2  answered, but the client did not receive the answer", CLOSES],
    ),
    "requests lost on the way": (
        tally(10, reset=3),
        reading(1, 7),
        [FAILED, "            3  not counted: the server did not read them", CLOSES],
    ),
    "an answer that the server could not send": (
        tally(10, reset=1),
        reading(1, 10, send_errors=1),
        [FAILED, "            1  answered, but the server could not send the answer", CLOSES],
    ),
    "a limited rate": (
        tally(1000, ERROR_rate_limited=785),
        reading(1, 1000, 785),
        [FAILED, "          785  rejected with an ERROR line", CLOSES],
    ),
    "a limited rate and bad lines": (
        tally(1000, 100, ERROR_rate_limited=785),
        reading(1, 1000, 885),
        [FAILED, "          785  rejected with an ERROR line", CLOSES],
    ),
    "a reset in place of the ERROR line": (
        tally(1000, 98, reset=2),
        reading(1, 1000, 100),
        [FAILED, "            2  rejected, but the client received no ERROR line", CLOSES],
    ),
    "a drain that ends a pipeline": (
        tally(20, ERROR_draining=4),
        reading(1, 17, 1),
        [
            FAILED,
            "            3  not counted: the server did not read them",
            "            1  rejected with an ERROR line",
            CLOSES,
        ],
    ),
    "connections refused as busy": (
        tally(1012, ERROR_busy=10, reset=2),
        reading(1, 1000),
        [
            FAILED,
            "           10  not counted: the server refused their connections",
            "            2  not counted: the server did not read them",
            CLOSES,
        ],
    ),
    "connections refused by source": (
        tally(1003, ERROR_per_source=2, ERROR_per_source__after__half__an__answer=1),
        reading(1, 1000),
        [FAILED, "            3  not counted: the server refused their connections", CLOSES],
    ),
    "a wrong clock": (
        tally(100, wrong__time=99),
        reading(1, 100),
        [FAILED, "           99  answered, but not with the right answer", CLOSES],
    ),
    "bad lines that are answered": (
        tally(100, a__time__for__a__bad__line=7, closed=1),
        reading(1, 100),
        [
            FAILED,
            "            7  answered, but not with the right answer",
            "            1  answered, but the client did not receive the answer",
            CLOSES,
        ],
    ),
    "rejections without an ERROR line": (
        tally(100, 40, closed_instead=40), reading(1, 100, 40), [CLOSES],
    ),
    "bad lines that a drain closed": (
        tally(100, 40, closed_instead=3, closed=1),
        reading(1, 98, 38),
        [
            FAILED,
            "            1  answered, but the client did not receive the answer",
            "Of the rejected ones, 2 are not in the counters: closed by the server, but not rejected by it.",
            CLOSES,
        ],
    ),
    "a bad line that a drain closed": (
        tally(100, 40, closed_instead=1),
        reading(1, 99, 39),
        [
            "Of the rejected ones, 1 is not in the counters: closed by the server, but not rejected by it.",
            CLOSES,
        ],
    ),
    "all at once": (
        tally(100, 10, wrong__time=1, ERROR_rate_limited=2, reset=4, ERROR_busy=5, closed=3),
        reading(1, 92, 14, send_errors=1),
        [
            FAILED,
            "            5  not counted: the server refused their connections",
            "            3  not counted: the server did not read them",
            "            1  answered, but not with the right answer",
            "            1  answered, but the client did not receive the answer",
            "            2  rejected with an ERROR line",
            "            2  rejected, but the client received no ERROR line",
            "            1  answered, but the server could not send the answer",
            CLOSES,
        ],
    ),
    "another client": (
        tally(100),
        reading(1, 102, 1),
        [f"The server counted 2 requests more than this client sent: {OTHERS}", OPEN],
    ),
    "one request of another client": (
        tally(100),
        reading(1, 101),
        [f"The server counted 1 request more than this client sent: {OTHERS}", OPEN],
    ),
    "another server": (
        tally(1000, 10),
        reading(1, 0),
        [
            f"This client received 990 answers more than the server counted: {NOT_NAMED}",
            f"This client received 10 rejections more than the server counted: {NOT_NAMED}",
            OPEN,
        ],
    ),
    "another server with a wrong clock": (
        tally(1, wrong__time=1),
        reading(1, 0),
        [f"This client received 1 answer more than the server counted: {NOT_NAMED}", OPEN],
    ),
    "a request without an outcome": (
        tally(100, interrupted=1),
        reading(1, 100, responses=99),
        [
            ("The server counted 1 request without an outcome:"
            " neither answered, nor rejected, nor a send error."),
            OPEN,
        ],
    ),
    "requests of others in flight at the start": (
        tally(100),
        reading(1, 100, responses=102),
        [
            ("The server counted 2 outcomes more than requests:"
            " requests of other clients were in flight at the start, or the server counts wrong."),
            OPEN,
        ],
    ),
    "a restart without a loss": (
        tally(100, reset=1),
        reading(2, 100),
        [
            f"The server was restarted once; {ALL_READ}",
            FAILED,
            "            1  answered, but the client did not receive the answer",
            CLOSES,
        ],
    ),
    "a restart with losses": (
        tally(100, reset=2),
        reading(2, 90),
        ["The server was restarted once: 10 requests are in no reading of the counters.", LOST],
    ),
    "a restart with one loss": (
        tally(100, 1),
        reading(2, 99, 1),
        ["The server was restarted once: 1 request is in no reading of the counters.", LOST],
    ),
    "a restart with a request in flight": (
        tally(100),
        reading(2, 99, responses=98),
        [
            ("The server was restarted once: 1 request is in no reading of the counters,"
            " 1 request was in flight at the last reading of a process."),
            LOST,
        ],
    ),
    "a restart with only a request in flight": (
        tally(100),
        reading(2, 100, responses=98),
        ["The server was restarted once: 2 requests were in flight at the last reading of a process.", LOST],
    ),
    "a restart does not explain it": (
        tally(100, reset=60),
        reading(2, 90, 90),
        [
            ("This client received 40 replies more than the server counted,"
            " and a restart explains only 10 of them."),
            OPEN,
        ],
    ),
    "a restart explains nothing": (
        tally(100, 100),
        reading(2, 100),
        [
            ("This client received 100 replies more than the server counted,"
            " and a restart explains none of them."),
            OPEN,
        ],
    ),
    "a restart and another client": (
        tally(100),
        reading(2, 101),
        [f"The server counted 1 request more than this client sent: {OTHERS}", OPEN],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_the_balance_says_what_happened(servers: Servers, autojump_clock: MockClock, name: str) -> None:
    """Each case has its own sentences, and the failed requests add up to those of the client."""
    made, counted, said = CASES[name]
    servers.say("a", reading(1, 0), counted)
    reconciliation = await Reconciliation.begin(["a"])
    await reconciliation.read_last()
    assert sentences(reconciliation, made) == said
    data = json.loads(json.dumps(balance.as_json(result_of(reconciliation, made))))
    assert bool(data["balance_faults"]) == (said[-1] == OPEN)
    assert (data["missing"] is not None) == (said[-1] == CLOSES)
    if data["missing"] is not None:
        assert all(number >= 0 for number in data["missing"].values())
        assert sum(data["missing"].values()) - data["missing"]["only_closed"] == made.failed.total()


@given(st.lists(st.integers(0, 9), min_size=11, max_size=11))
def test_each_failed_request_is_where_it_was(numbers: list[int]) -> None:
    """Whatever happened to the requests, nothing is a fault, and the sum is that of the failed ones."""
    answered, rejected, closed, only_closed, *failed = numbers
    refused, unread, wrong, answer_lost, told, untold, unsent = failed
    made = Tally(sum(numbers), answered, rejected + closed + only_closed, closed_instead=closed + only_closed)
    made.failed.update({"ERROR busy": refused, "closed": unread + untold, "reset": answer_lost + unsent})
    made.failed.update({"wrong time": wrong, "ERROR rate_limited": told})
    responses, rejections = answered + wrong + answer_lost, rejected + closed + told + untold
    counted = Counts(responses + rejections + unsent, responses, rejections, unsent)
    server = reconcile._Server(Page(Servers(), "a"), reading(1, 0))  # type: ignore[arg-type]  # stands in
    server._latest[1] = counted
    reconciliation = Reconciliation([server])
    assert reconciliation.faults(made) == []
    missing = reconciliation.missing(made)
    assert min(missing.values()) >= 0
    assert sum(missing.values()) - missing["only_closed"] == sum(failed)
    if not only_closed:  # else other rejections could be in their place
        assert list(missing.values()) == [*failed, 0]


async def test_counters_of_servers_are_added_up(servers: Servers, autojump_clock: MockClock) -> None:
    """What each server counted since its first reading is in the sum."""
    servers.say("a", reading(1, 100), reading(1, 160))
    servers.say("b", reading(1, 5), reading(1, 35, rejected=2))
    made = await Reconciliation.begin(["a", "b"])
    await made.read_last()
    assert made.counted == Counts(requests=90, responses=88, rejected=2)
    assert (made.servers, made.restarts) == (2, 0)
    assert balance.lines(result_of(made, tally(91, rejected=2, ERROR_busy=1))) == [
        "balance           sent      answered      rejected   send errors         reset   failed else",
        "client              91            88             2                           0             1",
        "servers             90            88             2             0",
        FAILED,
        "            1  not counted: the servers refused their connections",
        CLOSES,
    ]
    assert made.faults(tally(89, rejected=2)) == [
        (
            "The servers counted 1 request more than this client sent:"
            " other clients sent requests meanwhile, or a server counts wrong."
        )
    ]


async def test_the_data_for_programs_are_complete(servers: Servers, autojump_clock: MockClock) -> None:
    """The JSON has the counters, the restarts, the faults, and where the failed requests are."""
    servers.say("a", reading(1, 0), reading(1, 9, 1, send_errors=1))
    made = await Reconciliation.begin(["a"])
    await made.read_last()
    assert balance.as_json(result_of(made, tally(10, reset=2, ERROR_rate_limited=1))) == {
        "server_counted": {"requests": 9, "responses": 7, "rejected": 1, "send_errors": 1, "restarts": 0},
        "balance_faults": [],
        "missing": {
            "refused": 0,
            "not_counted": 1,
            "answered_wrong": 0,
            "answer_not_received": 0,
            "rejected_with_error": 1,
            "rejected_without_error": 0,
            "send_errors": 1,
            "only_closed": 0,
        },
    }


async def test_a_balance_without_a_last_reading_is_open(servers: Servers, autojump_clock: MockClock) -> None:
    """If the last reading failed, the result says why, and claims nothing else."""
    servers.say("a", reading(1, 0))
    result = result_of(await Reconciliation.begin(["a"]), tally(5), "the last reading failed: a: timed out")
    assert balance.lines(result) == ["The balance is open: the last reading failed: a: timed out"]
    assert balance.as_json(result)["missing"] is None


def test_a_load_without_metrics_has_no_balance() -> None:
    """Without --metrics, neither the text nor the JSON has a balance."""
    result = Result("a:1", Plan(), tally(5), 1.0, 0.0)
    assert (balance.lines(result), balance.as_json(result)) == ([], {})


async def test_restarts_of_several_servers_close_the_balance(
    servers: Servers, autojump_clock: MockClock
) -> None:
    """If the counts of ended processes were read to the last request, the balance closes."""
    servers.say("a", reading(1, 100), reading(1, 150), None, reading(2, 10), reading(2, 20))
    servers.say("b", reading(1, 0), reading(1, 30), None, None, reading(3, 0), reading(3, 7))
    made = await Reconciliation.begin(["a", "b"])
    made.suspect()
    with trio.move_on_after(10):
        await made.keep_reading()
    await made.read_last()
    assert made.counted == Counts(requests=107, responses=107)
    assert made.restarts == 2
    assert sentences(made, tally(107)) == [f"Servers were restarted 2 times; {ALL_READ}", CLOSES]
    assert sentences(made, tally(110)) == [
        "Servers were restarted 2 times: 3 requests are in no reading of the counters.",
        LOST,
    ]


async def test_counters_that_go_back_are_a_restart(servers: Servers, autojump_clock: MockClock) -> None:
    """Where the start of a process is not known, a smaller number of requests is a sign of a new process."""
    servers.say("a", reading(0, 100), reading(0, 150), reading(0, 7))
    made = await Reconciliation.begin(["a"])
    await made.read_last()
    assert (made.counted.requests, made.restarts) == (57, 1)


async def test_servers_are_read_rarely_without_a_suspicion(
    servers: Servers, autojump_clock: MockClock
) -> None:
    """A long load is read every 10 s, and a short one not at all."""
    servers.say("a", reading(1, 0))
    made = await Reconciliation.begin(["a"])
    began = trio.current_time()
    with trio.move_on_after(35):
        await made.keep_reading()
    assert servers.since("a", began) == [READ_INTERVAL, 2 * READ_INTERVAL, 3 * READ_INTERVAL]


async def test_a_suspected_server_is_read_at_once_and_often(
    servers: Servers, autojump_clock: MockClock
) -> None:
    """Until 5 s after the last suspicion, readings follow each other quickly; then they are rare again."""
    servers.say("a", reading(1, 0))
    made = await Reconciliation.begin(["a"])
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.keep_reading)
        await trio.sleep(3)
        made.suspect()
        await trio.sleep(2)
        made.suspect()
        await trio.sleep(30 - 5)
        nursery.cancel_scope.cancel()
    times = servers.since("a", began)
    often = [each for each in times if each <= 5 + SUSPECT_SECONDS + SUSPECT_INTERVAL]
    assert times[0] == 3
    assert max(after - before for before, after in itertools.pairwise(often)) < 2 * SUSPECT_INTERVAL
    assert often[-1] >= 5 + SUSPECT_SECONDS - SUSPECT_INTERVAL
    assert len(times) - len(often) == 1


async def test_a_server_without_an_answer_does_not_delay_the_others(
    servers: Servers, autojump_clock: MockClock
) -> None:
    """While one server does not answer, the others are read, so that their counts are not lost."""
    servers.say("hangs", reading(1, 0))
    servers.say("b", reading(1, 0), reading(1, 10), reading(2, 20))
    made = await Reconciliation.begin(["hangs", "b"])
    made.suspect()
    with trio.move_on_after(10):
        await made.keep_reading()
    assert made.counted == Counts(requests=30, responses=30)


@pytest.mark.parametrize("readings", [[None], [reading(1, 1), None]])
async def test_the_server_that_cannot_be_read_is_named(
    servers: Servers, autojump_clock: MockClock, readings: list[Any]
) -> None:
    """One of several servers without an answer leaves the balance open, at the start and at the end."""
    servers.say("a", reading(1, 1))
    servers.say("b", *readings)
    with pytest.raises(MetricsError, match=r"^b: connection refused"):
        await (await Reconciliation.begin(["a", "b"])).read_last()
