"""The rules that say what is wrong with a server. They see numbers; the page colours what they say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypedDict

from triojam.core.reasons import AcceptError, Listener, Refusal
from triojam.web.page.history import Reading, answer_time, lag

# The thresholds of the alerts in dashboards/prometheus/rules/alerts.yml.
NEARLY_FULL = 0.8
SLOW_SECONDS = 0.05
SLOW_ANSWERS = 4
LAG_SECONDS = 0.1
WARN_DAYS, WRONG_DAYS = 14, 3
# The loop stood still: no client was served meanwhile.
STALL_SECONDS = 0.5
_DAY = 86_400.0


class Level(StrEnum):
    """How bad it is: green, amber or red."""

    GOOD = "good"
    WARNING = "warning"
    WRONG = "wrong"


class Problem(TypedDict):
    """One thing that is wrong.

    part: the part of the page that shows it. name: a few words that stay the same while the numbers in `text`
    change.
    """

    level: Level
    part: str
    name: str
    text: str


class Headline(TypedDict):
    """The state in a few words."""

    level: Level
    text: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rules look at.

    not_ready: why the server takes no new clients, or None. window: the growth in the last seconds.
    synchronized: of the kernel's clock; None = unknown. clock_steps: in the last five minutes.
    certificates: how many seconds the certificate of each listener is still valid.
    internal_errors: since the start.
    """

    not_ready: str | None
    connections: int
    limit: int
    in_flight: int
    window: Reading
    internal_errors: int
    synchronized: bool | None
    clock_steps: int
    certificates: Mapping[Listener, float]
    reload_failed: bool


def find_problems(facts: Facts) -> list[Problem]:
    """Return what is wrong, the worst first."""
    found = [
        Problem(level=level, part=part, name=name, text=text)
        for rule in (_stage, _room, _refusals, _delivery, _speed, _clock, _certificates, _inside)
        for level, part, name, text in rule(facts)
    ]
    return sorted(found, key=lambda problem: problem["level"] is not Level.WRONG)


def make_headline(not_ready: str | None, problems: Sequence[Problem]) -> Headline:
    """Return the state and the worst problem. Before a red problem, "ready" is left out."""
    if not problems:
        return Headline(level=Level.GOOD, text="ready")
    worst = problems[0]["level"]
    others = [each["name"] for each in problems if each["part"] != "state"]
    state = "ready" if not_ready is None and worst is Level.WARNING else not_ready
    text = ", ".join(filter(None, [state, *others[:1]]))
    more = len(others) - 1
    return Headline(level=worst, text=text + (f" and {more} more" if more > 0 else ""))


Found = Iterator[tuple[Level, str, str, str]]


def _stage(facts: Facts) -> Found:
    if facts.not_ready == "draining":
        left = counted(facts.connections, "connection")
        yield Level.WARNING, "state", "draining", f"the server stops; {left} left"
    elif facts.not_ready is not None:
        yield Level.WARNING, "state", facts.not_ready, "the server does not take clients yet"


def _room(facts: Facts) -> Found:
    used = f"{facts.connections:,} of {facts.limit:,} connections are open"
    if facts.connections >= facts.limit:
        yield Level.WRONG, "connections", "full", f"{used}; new clients are refused"
    elif facts.connections >= NEARLY_FULL * facts.limit:
        yield Level.WARNING, "connections", "nearly full", used


def _refusals(facts: Facts) -> Found:
    refused = {reason: number for reason, number in facts.window.refused.items() if number}
    if refused:
        level = Level.WRONG if Refusal.BUSY in refused else Level.WARNING
        clients = counted(sum(refused.values()), "client")
        yield (
            level,
            "refused",
            "refusing",
            f"{clients} refused in the last {_window(facts)}: {_listed(refused)}",
        )
    # ECONNABORTED is a client that left before it was accepted.
    errors = facts.window.accept_errors.items()
    failed = {name: number for name, number in errors if number and name is not AcceptError.ECONNABORTED}
    if failed:
        yield Level.WRONG, "accepting", "accepting fails", f"in the last {_window(facts)}: {_listed(failed)}"


def _delivery(facts: Facts) -> Found:
    lost = {reason: number for reason, number in facts.window.send_errors.items() if number}
    if lost:
        answers = counted(sum(lost.values()), "answer")
        yield (
            Level.WARNING,
            "send errors",
            "send errors",
            f"{answers} not delivered in the last {_window(facts)}: {_listed(lost)}",
        )


def _speed(facts: Facts) -> Found:
    late = lag(facts.window)
    if late is not None and late > LAG_SECONDS:
        level = Level.WRONG if late > STALL_SECONDS else Level.WARNING
        yield level, "lag", "event loop lag", f"one timer in a hundred is {late:.3g} s late or more"
    slow = answer_time(facts.window, 0.99)
    # With few requests, p99 is the slowest one.
    if slow is not None and slow > SLOW_SECONDS and 0.01 * facts.window.responses >= SLOW_ANSWERS:
        yield Level.WARNING, "answers", "slow answers", f"one answer in a hundred takes {slow:.3g} s or more"


def _clock(facts: Facts) -> Found:
    if facts.synchronized is False:
        yield (
            Level.WARNING,
            "clock",
            "clock not synchronized",
            "the kernel says that no time service keeps its clock",
        )
    if facts.clock_steps:
        steps = counted(facts.clock_steps, "time")
        yield (
            Level.WARNING,
            "clock",
            "clock set",
            f"the clock jumped by more than half a second, {steps} in the last 5 min",
        )


def _certificates(facts: Facts) -> Found:
    for listener, left in facts.certificates.items():
        part = f"certificate {listener}"
        if left <= 0:
            yield Level.WRONG, part, f"{listener} certificate ended", f"it ended {_span(left)} ago"
        elif left < WARN_DAYS * _DAY:
            level = Level.WRONG if left < WRONG_DAYS * _DAY else Level.WARNING
            yield level, part, f"{listener} certificate ends soon", f"it ends in {_span(left)}"


def _inside(facts: Facts) -> Found:
    window = facts.window
    if facts.internal_errors:
        level = Level.WRONG if window.internal_errors else Level.WARNING
        errors = counted(facts.internal_errors, "unexpected exception")
        yield level, "internal errors", "internal errors", f"{errors} since the start; the log has them"
    if facts.reload_failed:
        yield (
            Level.WARNING,
            "reloads",
            "reload failed",
            "the last SIGHUP left the old settings; the log says why",
        )
    if window.log_messages_dropped:
        lines = counted(window.log_messages_dropped, "line")
        yield Level.WARNING, "log", "log lines dropped", f"{lines} in the last {_window(facts)}"
    if window.client_table_evictions:
        sources = counted(window.client_table_evictions, "source")
        yield (
            Level.WARNING,
            "sources",
            "sources forgotten",
            f"{sources} in the last {_window(facts)}: the table of sources is full",
        )
    if facts.in_flight < 0:
        yield Level.WRONG, "accounts", "accounts do not balance", f"{facts.in_flight} requests in flight"


def counted(number: int, thing: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _span(seconds: float) -> str:
    days, hours = divmod(int(abs(seconds) // 3600), 24)
    return counted(days, "day") if days else counted(hours, "hour")


def _window(facts: Facts) -> str:
    return f"{max(facts.window.at, 1):.0f} s"


def _listed(numbers: Mapping[Any, int]) -> str:
    ordered = sorted(numbers.items(), key=lambda item: -item[1])
    return ", ".join(f"{number:,} {reason}" for reason, number in ordered)
