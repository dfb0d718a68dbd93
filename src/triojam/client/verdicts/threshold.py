"""The greatest offset that is allowed: as a judgement, and as a plugin for Nagios and what understands it."""

from collections.abc import Sequence
from enum import Enum

from triojam.client.ask import Outcome
from triojam.client.render import format_offset
from triojam.client.session import Answer, AskError, Target


class Nearness(Enum):
    """Where the true offset lies, as far as is known; the text is for people."""

    WITHIN = ""
    UNSURE = "perhaps beyond"
    BEYOND = "beyond"


# The exit statuses of the guidelines for plugins (monitoring-plugins.org).
OK, WARNING, CRITICAL, UNKNOWN = range(4)
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_STATUSES = {Nearness.WITHIN: OK, Nearness.UNSURE: WARNING, Nearness.BEYOND: CRITICAL}
# The worst first.
_RANKS = (CRITICAL, UNKNOWN, WARNING, OK)


def nearness(answer: Answer, limit: float | None) -> Nearness:
    """Compare an offset with the greatest that is allowed; None = any."""
    if limit is None or abs(answer.offset) + answer.bound <= limit:
        return Nearness.WITHIN
    return Nearness.BEYOND if abs(answer.offset) - answer.bound > limit else Nearness.UNSURE


def describe_offset(answer: Answer, limit: float | None) -> str:
    """Say how large an offset is, and whether that is allowed."""
    said = format_offset(answer.offset, answer.bound, words=False)
    near = nearness(answer, limit)
    return f"{said}, {near.value} {limit:g} s" if near is not Nearness.WITHIN else said


def nagios(targets: Sequence[Target], outcomes: Sequence[Outcome], limit: float | None) -> tuple[int, str]:
    """Return the exit status of a plugin, and its line with performance data."""
    found = []
    for target, outcome in zip(targets, outcomes, strict=True):
        if isinstance(outcome, Answer):
            found.append((_STATUSES[nearness(outcome, limit)], f"{target} {describe_offset(outcome, limit)}"))
        elif isinstance(outcome, AskError):
            found.append((CRITICAL, f"{target} {outcome}"))
        else:
            found.append((UNKNOWN, f"{target} interrupted"))
    found.sort(key=lambda each: _RANKS.index(each[0]))
    status = found[0][0]
    line = plugin_line(status, "; ".join(text for _, text in found))
    data = [
        _performance(outcome, limit, str(target) if len(targets) > 1 else "")
        for target, outcome in zip(targets, outcomes, strict=True)
        if isinstance(outcome, Answer)
    ]
    return status, " | ".join([line, " ".join(data)] if data else [line])


def plugin_line(status: int, text: str) -> str:
    """Render a line without performance data."""
    return f"TIME {_WORDS[status]} - {text.replace('|', '/')}"  # performance data begins at a bar


def _performance(answer: Answer, limit: float | None, server: str) -> str:
    def label(name: str) -> str:
        return f"'{server} {name}'" if server else name

    allowed = f";;{-limit:g}:{limit:g}" if limit is not None else ""
    return (
        f"{label('offset')}={_plain(answer.offset)}s{allowed} {label('bound')}={_plain(answer.bound)}s;;;0 "
        f"{label('round_trip')}={_plain(answer.round_trip)}s;;;0"
    )


def _plain(number: float) -> str:
    """Render a number without an exponent, which not every reader of performance data knows."""
    return f"{number:.9f}".rstrip("0").rstrip(".")
