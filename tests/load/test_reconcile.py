"""The balance of a load with the counters of its servers, by numbers."""

from collections import defaultdict, deque
from typing import Any

import pytest
import trio

from triojam.load import reconcile
from triojam.load.measure.tally import Tally
from triojam.load.plan import Plan
from triojam.load.reconcile import Counts, MetricsError, Reading, Reconciliation
from triojam.load.result.result import Result
from triojam.load.result.text import render


class Servers:
    """Servers whose readings are given; the last one of each stays. None: the server does not answer."""

    def __init__(self) -> None:
        self.readings: dict[str, deque[Reading | None]] = defaultdict(deque)

    def say(self, url: str, *readings: Reading | None) -> None:
        """Let a server show these readings, one after the other."""
        self.readings[url] = deque(readings)

    async def read(self, url: str) -> Reading:
        """Read a server, as `read_counts` does."""
        await trio.lowlevel.checkpoint()
        readings = self.readings[url]
        reading = readings.popleft() if len(readings) > 1 else readings[0]
        if reading is None:
            raise MetricsError(f"{url}: connection refused")
        return reading


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock) -> Servers:
    """Replace the reading of metrics over HTTP."""
    made = Servers()
    monkeypatch.setattr(reconcile, "read_counts", made.read)
    return made


def reading(process: float, requests: int, rejected: int = 0, **counts: int) -> Reading:
    """Make a reading in which every request is accounted for."""
    answered = requests - rejected - sum(counts.values())
    return Reading(process, Counts(requests, counts.pop("responses", answered), rejected, **counts))


def tally(sent: int, rejected: int = 0, failed: int = 0) -> Tally:
    """Make the tally of a load."""
    made = Tally()
    made.sent, made.answered, made.rejected = sent, sent - rejected - failed, rejected
    made.failed["closed"] += failed
    return made


def balance(reconciliation: Reconciliation, tally: Tally) -> list[str]:
    """Return the lines of the result from the balance on."""
    plan = Plan(connections=1)
    result = Result("a:1", plan, tally, seconds=1.0, busy=0.0, reconciliation=reconciliation)
    text = render(result)
    return text[text.index("balance") :].splitlines()


async def test_counters_of_servers_are_added_up(servers: Servers) -> None:
    """What each server counted since its first reading is in the sum."""
    servers.say("a", reading(1, 100), reading(1, 160))
    servers.say("b", reading(1, 5), reading(1, 35, rejected=2))
    made = await Reconciliation.begin(["a", "b"])
    await made.read_last()
    assert made.counted == Counts(requests=90, responses=88, rejected=2)
    assert (made.servers, made.restarts) == (2, 0)
    assert made.faults(tally(90, rejected=2)) == []
    assert balance(made, tally(90, rejected=2))[-1] == "The balance closes."
    assert made.missing(tally(91, failed=1, rejected=2))["sent, but not counted"] == 1


async def test_restarts_of_several_servers_close_the_balance(servers: Servers) -> None:
    """If the counts of ended processes were read to the last request, the balance closes."""
    servers.say("a", reading(1, 100), reading(1, 150), None, reading(2, 10), reading(2, 20))
    servers.say("b", reading(1, 0), reading(1, 30), None, None, reading(3, 0), reading(3, 7))
    made = await Reconciliation.begin(["a", "b"])
    with trio.move_on_after(10):
        await made.keep_reading()
    await made.read_last()
    assert made.counted == Counts(requests=107, responses=107)
    assert made.restarts == 2
    assert balance(made, tally(107))[-2:] == [
        "Servers were restarted 2 times; each request is in a reading of the counters.",
        "The balance closes.",
    ]
    assert "Servers were restarted 2 times: 3 requests are in no reading of the counters." in balance(
        made, tally(110)
    )
    assert made.faults(tally(106)) == ["1 more requests were counted than were sent"]


async def test_a_server_without_an_answer_does_not_delay_the_others(servers: Servers) -> None:
    """While one server does not answer, the others are read, so that their counts are not lost."""

    async def read(url: str) -> Reading:
        if url == "hangs" and servers.readings[url][0] is None:
            await trio.sleep_forever()
        return await Servers.read(servers, url)

    servers.say("hangs", reading(1, 0))
    servers.say("b", reading(1, 0), reading(1, 10), reading(2, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconcile, "read_counts", read)
        made = await Reconciliation.begin(["hangs", "b"])
        servers.say("hangs", None)
        with trio.move_on_after(10):
            await made.keep_reading()
    assert made.counted == Counts(requests=30, responses=30)


@pytest.mark.parametrize("readings", [[None], [reading(1, 1), None]])
async def test_the_server_that_cannot_be_read_is_named(servers: Servers, readings: list[Any]) -> None:
    """One of several servers without an answer leaves the balance open, at the start and at the end."""
    servers.say("a", reading(1, 1))
    servers.say("b", *readings)
    with pytest.raises(MetricsError, match=r"^b: connection refused"):
        await (await Reconciliation.begin(["a", "b"])).read_last()
