"""The state that all connections of a server share."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from structlog.typing import FilteringBoundLogger

from triojam.core.admission import Admission, Policy, Source, parse_networks
from triojam.core.counters import Counters
from triojam.core.protocol import Rules
from triojam.serving.deadlines import Timeouts
from triojam.settings.fields import FIELDS, Settings
from triojam.settings.files import Files, load_files


@dataclass(slots=True, kw_only=True)
class Service:
    """The state that all connections of a server share.

    rules, timeouts, log: may be replaced at any time; they apply to unfinished lines and waits, too.
    jam: renders the current time as a whole answer line.
    own_counters: for the server's own connections; no metric shows them.
    """

    rules: Rules
    timeouts: Timeouts
    counters: Counters
    admission: Admission
    jam: Callable[[], bytes]
    log: FilteringBoundLogger
    own_counters: Counters = field(default_factory=Counters)

    @classmethod
    def of(cls, settings: Settings, *, jam: Callable[[], bytes], log: FilteringBoundLogger) -> Self:
        """Make the service that settings describe, with counters at 0."""
        return cls(
            rules=make_rules(settings),
            timeouts=make_timeouts(settings),
            counters=Counters(),
            admission=Admission(make_policy(settings)),
            jam=jam,
            log=log,
        )

    def counters_for(self, source: Source) -> Counters:
        """Return the counters for a connection from `source`."""
        return self.own_counters if source is self.admission.itself else self.counters

    def apply(self, settings: Settings, policy: Policy) -> None:
        """Apply the settings of a reload."""
        self.rules = make_rules(settings)
        self.timeouts = make_timeouts(settings)
        self.admission.set_policy(policy)


class Change(NamedTuple):
    """What a reload applies.

    changed: the settings with a new value, or with a file that has new content. need_restart: those that
    differ and stay as they are.
    """

    settings: Settings
    files: Files
    policy: Policy
    changed: list[str]
    need_restart: list[str]


def prepare_change(new: Settings, old: Settings, old_files: Files) -> Change:
    """Read the files of new settings; settings that cannot change while serving stay as they are.

    It changes nothing, so that it may run in a thread, and be given up. Raises ConfigurationError.
    """
    differ = [name for name in FIELDS if getattr(new, name) != getattr(old, name)]
    need_restart = [name for name in differ if not FIELDS[name].metadata["reloads"]]
    kept: dict[str, Any] = {name: getattr(old, name) for name in need_restart}
    settings = replace(new, **kept)
    files = load_files(settings)
    changed = [
        name
        for name in FIELDS
        if (name in differ and name not in need_restart)
        or files.digests.get(name) != old_files.digests.get(name)
    ]
    return Change(settings, files, make_policy(settings), changed, need_restart)


def make_rules(settings: Settings) -> Rules:
    """Return the limits of a connection."""
    return Rules(
        max_line_bytes=settings.max_line_bytes,
        error_budget=settings.error_budget,
        reply_to_rejected=settings.on_reject == "reply",
    )


def make_policy(settings: Settings) -> Policy:
    """Return the policy of admission."""
    return Policy(
        allow=parse_networks(settings.allow),
        deny=parse_networks(settings.deny),
        connections_per_source=settings.connections_per_source,
        rate_per_source=settings.rate_per_source,
        burst_per_source=settings.burst_per_source,
        proxies=parse_networks(settings.proxies),
    )


def make_timeouts(settings: Settings) -> Timeouts:
    """Return the timeouts; in the settings, 0 means no timeout."""
    return Timeouts(
        idle=settings.idle_timeout or math.inf,
        line=settings.line_timeout or math.inf,
        send=settings.send_timeout or math.inf,
    )
