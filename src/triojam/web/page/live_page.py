"""The content of the live page and of /status."""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

import trio

from triojam.core.addresses import describe_ports
from triojam.core.reasons import Reload
from triojam.web.metrics import Moment
from triojam.web.page.history import INTERVAL, History, Reading, Row, answer_time, failures, lag
from triojam.web.page.problems import Facts, find_problems, make_headline
from triojam.web.page.tasks import Branch, task_tree

# Many pages share one tree of tasks.
TREE_SECONDS = 0.5


class LivePage:
    """Reads the counters once a second, and returns the content of the page.

    read: returns what a scrape reads. not_ready: returns why the server takes no new clients, or None.
    zone: returns the zone of the answers; None = the system's. listeners: the addresses of each kind.
    """

    def __init__(
        self,
        read: Callable[[], Moment],
        *,
        not_ready: Callable[[], str | None],
        zone: Callable[[], tzinfo | None],
        listeners: Mapping[str, Sequence[tuple[str, int]]],
        version: str,
    ) -> None:
        self._read = read
        self._not_ready = not_ready
        self._zone = zone
        port = listeners["time"][0][1] if listeners["time"] else 0
        self._identity = {
            "process": time.time_ns(),  # a page sees by this that the server was restarted
            "name": f"{socket.gethostname()}:{port}",
            "pid": os.getpid(),
            "version": version,
            "listeners": {kind: describe_ports(each) for kind, each in listeners.items() if each},
        }
        self._began = trio.current_time()
        moment = read()
        self._history = History(Reading.of(moment, self._began))
        self._reload_failed = False
        self._failed_reloads = self._reloads = 0
        self._tree: Branch | None = None
        self._tree_is_from = 0.0

    async def run(self) -> None:
        """Read the counters once a second, until cancelled."""
        while True:
            await trio.sleep(INTERVAL)
            moment = self._read()
            self._history.add(Reading.of(moment, trio.current_time()))
            self._note_reloads(moment)

    def content(self, since: float) -> dict[str, Any]:
        """Return the content of the page. since: the time of the last row that the page has."""
        moment = self._read()
        self._note_reloads(moment)
        at = trio.current_time()
        return {
            **self._identity,
            **self._time(moment.clock, at),
            **self._health(moment),
            **_totals(moment),
            "tasks": self._tasks(at),
            "history": {"columns": Row._fields, "rows": self._history.since(since)},
        }

    def _time(self, clock: float, at: float) -> dict[str, Any]:
        second = int(clock)
        local = datetime.fromtimestamp(second, self._zone())
        if local.tzinfo is None:
            local = local.astimezone()
        return {
            "time": f"{local:%H:%M:%S}",
            "fraction": round(clock - second, 3),
            "zone": getattr(local.tzinfo, "key", None) or f"{local.tzname()}, the system's zone",
            "utc_offset": local.isoformat()[19:],
            "at": round(at, 3),
            "uptime": round(at - self._began, 1),
        }

    def _health(self, moment: Moment) -> dict[str, Any]:
        c, kernel = moment.counters, moment.kernel
        window = self._history.window()
        left = {listener: end - moment.clock for listener, end in moment.certificate_ends.items()}
        facts = Facts(
            not_ready=self._not_ready(),
            connections=c.connections_open,
            limit=c.connections_limit,
            in_flight=c.unaccounted,
            window=window,
            internal_errors=c.internal_errors,
            synchronized=kernel and kernel.synchronized,
            clock_steps=self._history.clock_steps(),
            certificates=left,
            reload_failed=self._reload_failed,
        )
        problems = find_problems(facts)
        refused, lost = sum(window.refused.values()), sum(window.send_errors.values())
        owed = window.responses + failures(window)
        return {
            "state": facts.not_ready or "ready",
            "headline": make_headline(facts.not_ready, problems),
            "problems": problems,
            "synchronized": facts.synchronized,
            "max_error": kernel and kernel.max_error,
            "certificates": {
                listener: {"ends": _date(end), "seconds_left": round(left[listener])}
                for listener, end in moment.certificate_ends.items()
            },
            "last_reload_failed": self._reload_failed,
            "window": {
                "seconds": round(window.at, 1),
                "requests": window.requests,
                "responses": window.responses,
                "rejected": sum(window.rejected.values()),
                "refused": refused,
                "send_errors": lost,
                "success": round(window.responses / owed, 6) if owed else None,
                "p50": answer_time(window, 0.5),
                "p99": answer_time(window, 0.99),
                "lag_p99": lag(window),
            },
        }

    def _note_reloads(self, moment: Moment) -> None:
        """Find out whether the last reload has failed: the counters have no order."""
        reloads = moment.counters.config_reloads
        if reloads[Reload.FAILURE] != self._failed_reloads:
            self._reload_failed = True
        elif reloads[Reload.SUCCESS] != self._reloads:
            self._reload_failed = False
        self._failed_reloads, self._reloads = reloads[Reload.FAILURE], reloads[Reload.SUCCESS]

    def _tasks(self, now: float) -> Branch:
        if self._tree is None or now - self._tree_is_from >= TREE_SECONDS:
            self._tree, self._tree_is_from = task_tree(), now
        return self._tree


def _totals(moment: Moment) -> dict[str, Any]:
    c = moment.counters
    return {
        **c.totals(),
        "in_flight": c.unaccounted,
        "refused": sum(c.connections_rejected.values()),
        "connections_limit": c.connections_limit,
        "connections_accepted": c.connections,
        "clock_steps": c.clock_steps,
        "internal_errors": c.internal_errors,
        "log_messages_dropped": moment.log_messages_dropped,
        "sources_forgotten": moment.client_table_evictions,
        "rejected_by_reason": c.rejected,
        "refused_by_reason": c.connections_rejected,
        "send_errors_by_reason": c.send_errors,
        "disconnects_by_reason": c.disconnects,
        "handovers_by_cause": c.handovers,
        "accept_errors_by_errno": c.accept_errors,
        "web_rejected_by_reason": c.web_rejected,
        "auth_failures_by_reason": c.auth_failures,
        "reloads_by_result": c.config_reloads,
        "self_checks_by_result": c.self_checks,
    }


def _date(seconds: float) -> str:
    """Return a date in UTC: a certificate may end in the year 9999, and in some zones after it."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
