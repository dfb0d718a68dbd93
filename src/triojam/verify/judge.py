"""Judges a server: tries rule after rule, and sees which rule the server does not survive."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import trio

from triojam.verify.client import Broken, Client
from triojam.verify.subject import Subject

# The rule on which all others depend.
ANSWER = "answer"


class Group(StrEnum):
    """The groups of rules, in the order in which they are tried."""

    EXERCISE = "exercise"
    LATER = "later"
    ROBUST = "robust"
    STRICT = "strict"


class Verdict(StrEnum):
    """What a judge says about a rule."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule, and how to judge it.

    purpose: what the rule is for. cause: the usual mistake. mend: a few lines of code. judge: raises Broken
    if the rule does not hold. depends: rules without which it cannot be judged. slow: takes many seconds.
    """

    name: str
    group: Group
    title: str
    purpose: str
    cause: str
    mend: str
    judge: Callable[[Subject], Awaitable[None]]
    depends: tuple[str, ...] = (ANSWER,)
    slow: bool = False


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict about one rule.

    reason: why it fails or was not tried. sent, came: the exchange that shows it, printable. stderr: what a
    server that was started with --command wrote meanwhile. skipped: it is slow, and was not asked for.
    """

    rule: Rule
    verdict: Verdict
    reason: str = ""
    sent: str = ""
    came: str = ""
    stderr: str = ""
    skipped: bool = False


Show = Callable[[Finding], None]


async def judge(  # noqa: PLR0913  # every option has a default
    subject: Subject,
    rules: Sequence[Rule],
    *,
    slow: bool = False,
    show: Show = lambda _finding: None,
    revive: Callable[[], Awaitable[bool]] | None = None,
    stderr: Callable[[bool], Awaitable[str]] | None = None,
) -> list[Finding]:
    """Try the rules in their order. show: gets each finding at once.

    revive: starts a server that has died once more, and tells whether it listens. stderr: forgets
    what the server has written since the last call, or returns it.
    """
    findings: dict[str, Finding] = {}
    killer = ""
    for rule in rules:
        finding = _untried(rule, findings, killer, slow=slow)
        if finding is None:
            finding, survived = await _try(subject, rule)
            if stderr is not None:
                finding = replace(finding, stderr=await stderr(finding.verdict is Verdict.FAILS))
            if not survived and not (revive is not None and await revive()):
                killer = rule.name
        findings[rule.name] = finding
        show(finding)
    return list(findings.values())


def _untried(rule: Rule, findings: dict[str, Finding], killer: str, *, slow: bool) -> Finding | None:
    """Return the finding for a rule that cannot be tried."""
    if killer:
        return _not_tried(rule, f"the server did not survive the rule {killer}")
    if missing := [each for each in rule.depends if findings[each].verdict is not Verdict.HOLDS]:
        return _not_tried(rule, f"depends on {', '.join(missing)}")
    if rule.slow and not slow:
        return replace(_not_tried(rule, "takes long; --slow tries it"), skipped=True)
    return None


def _not_tried(rule: Rule, reason: str) -> Finding:
    return Finding(rule=rule, verdict=Verdict.NOT_TRIED, reason=reason)


async def _try(subject: Subject, rule: Rule) -> tuple[Finding, bool]:
    """Try one rule; also return whether the server has survived it."""
    broken: Broken | None = None
    try:
        await rule.judge(subject)
    except Broken as exc:
        broken = exc
    shown = broken.client if broken is not None else _telling(subject.clients)
    sent, came = (shown.sent, shown.came) if shown is not None else ("", "")
    await subject.close()
    reason = str(broken) if broken is not None else ""
    # A server that has never answered cannot be asked whether it is still there.
    can_answer = ANSWER in rule.depends or (rule.name == ANSWER and broken is None)
    gone = await _why_gone(subject) if can_answer else None
    if gone is not None:
        reason = f"{reason}; afterwards the server was gone: {gone}".removeprefix("; ")
    verdict = Verdict.FAILS if reason else Verdict.HOLDS
    finding = Finding(rule=rule, verdict=verdict, reason=reason, sent=sent, came=came)
    return finding, gone is None


async def _why_gone(subject: Subject) -> str | None:
    """Ask as the only client; return why there is no answer, and note how long an answer takes."""
    began = trio.current_time()
    gone = await subject.why_not_answering()
    if gone is None:
        subject.pace.slowest = max(subject.pace.slowest, trio.current_time() - began)
    return gone


def _telling(clients: Sequence[Client]) -> Client | None:
    """Return the connection that shows most: one with an answer."""
    return next((each for each in clients if each.received), next(iter(clients), None))
