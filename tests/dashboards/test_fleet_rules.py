"""The rules on whole fleets: all alerts that fire in a course of events, and no others."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dashboards.test_rules import TESTS, load, run_promtool

# A letter is the state of a target at one scrape.
SERVES = "."
REFUSES = "!"  # all clients, as busy
DRAINS = "d"
HANGS = "h"  # the scrape fails, and the process continues later
DEAD = "x"  # the scrape fails, and a new process comes later
OTHER = "o"  # another program answers
GONE = " "  # not a target of Prometheus
UNSEEN = "_"  # Prometheus itself does not run

STEP = 15
MINUTE = 60 // STEP
HOUR = 60 * MINUTE
SCRAPED_RATE = 10  # requests a second


def series_of(job: str, instance: str, states: str, step: int) -> Iterator[dict[str, str]]:
    """Yield the series of a target as promtool takes them."""
    columns: dict[str, list[str]] = {}
    started = answered = refused = 0
    for number, (before, state) in enumerate(zip(DEAD + states, states, strict=False)):
        runs = state in SERVES + REFUSES + DRAINS
        if runs and before in DEAD + OTHER + GONE:
            started, answered, refused = number, 0, 0
        answered += SCRAPED_RATE * step * (state == SERVES)
        refused += SCRAPED_RATE * step * (state == REFUSES)
        absent = UNSEEN if state == UNSEEN else "stale"
        for name, value in {
            'triojam_build_info{version="1", python="3", trio="0", ': 1,
            "triojam_ready{": int(state != DRAINS),
            "triojam_draining{": int(state == DRAINS),
            "triojam_requests_total{": answered,
            "triojam_responses_total{": answered,
            'triojam_rejected_total{reason="draining", ': 0,
            'triojam_response_send_errors_total{reason="timeout", ': 0,
            'triojam_connections_rejected_total{reason="busy", ': refused,
            'triojam_accept_errors_total{errno="EMFILE", ': 0,
            'triojam_config_reloads_total{result="failure", ': 0,
            'triojam_config_reloads_total{result="success", ': 0,
            "triojam_internal_errors_total{": 0,
            "triojam_clock_seconds{": number * step,
            "process_start_time_seconds{": started,
        }.items():
            columns.setdefault(name, []).append(str(value) if runs else absent)
        up = absent if state in GONE + UNSEEN else str(int(state not in DEAD + HANGS))
        columns.setdefault("up{", []).append(up)
        columns.setdefault("scrape_duration_seconds{", []).append("0" if up != absent else absent)
    for name, values in columns.items():
        yield {"series": f'{name}job="{job}", instance="{instance}"}}', "values": " ".join(values)}


def firing(alert: str, severity: str, **labels: str) -> str:
    """Return the series of an alert that fires."""
    listed = {"alertname": alert, "alertstate": "firing", "severity": severity} | labels
    return "ALERTS{" + ", ".join(f'{name}="{value}"' for name, value in listed.items()) + "}"


class Fleet:
    """Courses of the targets of a job, and the alerts that are expected at some scrapes."""

    def __init__(self, folder: Path, step: int = STEP) -> None:
        self._folder = folder
        self._step = step
        self._series: list[dict[str, str]] = []
        self._checks: list[dict[str, Any]] = []

    def add(self, states: str, instance: str = "s00", job: str = "time") -> None:
        """Add a target."""
        self._series += series_of(job, instance, states, self._step)

    def expect(self, *alerts: str, at: Sequence[int], severity: str = "page|ticket|info") -> None:
        """Expect exactly these alerts of a severity, at these scrapes."""
        for scrape in at:
            self._checks.append(
                {
                    "expr": f'ALERTS{{alertstate="firing", severity=~"{severity}"}}',
                    "eval_time": f"{scrape * self._step}s",
                    "exp_samples": [{"labels": alert, "value": 1} for alert in alerts],
                }
            )

    def check(self) -> None:
        """Let promtool evaluate the rules."""
        shipped = load(TESTS[0])
        content = {
            "rule_files": [str(TESTS[0].parent / each) for each in shipped["rule_files"]],
            "group_eval_order": shipped["group_eval_order"],
            "evaluation_interval": f"{self._step}s",
            "tests": [
                {
                    "interval": f"{self._step}s",
                    "input_series": self._series,
                    "promql_expr_test": self._checks,
                }
            ],
        }
        file = self._folder / "fleet.yml"
        file.write_text(yaml.safe_dump(content), "utf-8")
        run_promtool("test", "rules", file)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet that is scraped every 15 seconds."""
    return Fleet(tmp_path)


def names(number: int) -> list[str]:
    """Return the names of instances."""
    return [f"s{each:02}" for each in range(number)]


def minutes(first: int, last: int) -> range:
    """Return a scrape of each minute."""
    return range(first * MINUTE, last * MINUTE, MINUTE)


def test_one_dead_server_of_twenty_is_a_ticket(fleet: Fleet) -> None:
    """One dead server of twenty gives one ticket, and no page."""
    for name in names(20):
        fleet.add(SERVES * 10 * MINUTE + (DEAD if name == "s07" else SERVES) * 30 * MINUTE, name)
    fleet.expect(at=minutes(5, 15))
    fleet.expect(firing("TriojamDown", "ticket", job="time", instance="s07"), at=minutes(16, 39))
    fleet.check()


def test_a_single_dead_server_is_a_page(fleet: Fleet) -> None:
    """The death of the only server of a job gives one page."""
    fleet.add(SERVES * 10 * MINUTE + DEAD * 30 * MINUTE)
    fleet.expect(at=minutes(5, 11))
    fleet.expect(firing("TriojamDown", "page", job="time", instance="s00"), at=minutes(12, 39))
    fleet.check()


def test_a_fleet_with_nine_dead_servers_of_twenty_is_a_page(fleet: Fleet) -> None:
    """If less than 60 % of the servers serve, each dead one is a page, and so is their number."""
    dead = names(9)
    for name in names(20):
        fleet.add(SERVES * 10 * MINUTE + (DEAD if name in dead else SERVES) * 20 * MINUTE, name)
    down = [firing("TriojamDown", "page", job="time", instance=each) for each in dead]
    fleet.expect(*down, at=minutes(12, 14))
    fleet.expect(*down, firing("TriojamTooFewReady", "page", job="time"), at=minutes(16, 29))
    fleet.check()


def test_one_failing_server_of_twenty_is_a_ticket(fleet: Fleet) -> None:
    """One server of twenty that refuses all clients gives tickets, and no page."""
    for name in names(20):
        fleet.add(SERVES * 10 * MINUTE + (REFUSES if name == "s07" else SERVES) * 30 * MINUTE, name)
    fleet.expect(at=minutes(5, 39), severity="page")
    sick = {"job": "time", "instance": "s07"}
    fleet.expect(
        firing("TriojamServerFailing", "ticket", **sick),
        firing("TriojamRefusing", "ticket", reason="busy", **sick),
        firing("TriojamFailingSlowly", "ticket", job="time"),
        at=minutes(30, 39),
    )
    fleet.check()


@pytest.mark.parametrize("number", [1, 3, 20])
def test_a_failing_service_is_a_page(fleet: Fleet, number: int) -> None:
    """A service in which all servers refuse all clients gives one page."""
    for name in names(number):
        fleet.add(SERVES * 10 * MINUTE + REFUSES * 20 * MINUTE, name)
    fleet.expect(at=minutes(5, 10))
    fleet.expect(firing("TriojamFailingFast", "page", job="time"), at=minutes(15, 29), severity="page")
    fleet.check()


@pytest.mark.parametrize("number", [2, 3, 20])
def test_a_roll_fires_nothing(fleet: Fleet, number: int) -> None:
    """Servers that drain and restart, one after the other, fire no alert of any severity."""
    for place, name in enumerate(names(number)):
        before = SERVES * (10 * MINUTE + place * MINUTE)
        fleet.add(f"{before}{DRAINS * 2}{DEAD * 2}".ljust(HOUR, SERVES), name)
    fleet.expect(at=range(5 * MINUTE, HOUR, 2))
    fleet.check()


def test_a_roll_with_new_instances_fires_nothing(fleet: Fleet) -> None:
    """An orchestrator that replaces servers, before Prometheus sees their drains, fires no alert."""
    for place, name in enumerate(names(5)):
        end = (10 + place) * MINUTE
        fleet.add((SERVES * end).ljust(HOUR, GONE), name)
        fleet.add((GONE * (end + 2)).ljust(HOUR, SERVES), f"new-{name}")
    fleet.expect(at=range(5 * MINUTE, HOUR))
    fleet.check()


def test_fewer_servers_after_a_drain_fire_nothing(fleet: Fleet) -> None:
    """A server that drained, and then is not a target any more, fires no alert."""
    fleet.add(SERVES * HOUR, "s00")
    fleet.add((SERVES * 10 * MINUTE + DRAINS).ljust(HOUR, GONE), "s01")
    fleet.expect(at=range(5 * MINUTE, HOUR))
    fleet.check()


@pytest.mark.parametrize("lost", [GONE, OTHER])
def test_a_server_that_vanished_is_a_ticket(fleet: Fleet, lost: str) -> None:
    """A server that is not a target any more, or answers as another program, is absent."""
    fleet.add(SERVES * HOUR, "s00")
    fleet.add((SERVES * 20 * MINUTE).ljust(HOUR, lost), "s01")
    fleet.expect(at=minutes(5, 30))
    fleet.expect(firing("TriojamAbsent", "ticket", job="time", instance="s01"), at=minutes(32, 39))
    fleet.check()


def test_a_job_that_vanished_is_a_page(fleet: Fleet) -> None:
    """A job without a target is absent, while another job of triojam has its server."""
    fleet.add((SERVES * 20 * MINUTE).ljust(HOUR, GONE), "s00")
    fleet.add((SERVES * 20 * MINUTE).ljust(HOUR, GONE), "s01")
    fleet.add(SERVES * HOUR, "s02", job="other")
    fleet.expect(at=minutes(5, 30))
    fleet.expect(firing("TriojamAbsent", "page", job="time"), at=minutes(32, 59))
    fleet.check()


def test_a_renamed_job_fires_nothing(fleet: Fleet) -> None:
    """The same instances under the name of another job fire no alert."""
    fleet.add((SERVES * 20 * MINUTE).ljust(HOUR, GONE), "s00", job="time")
    fleet.add((GONE * 20 * MINUTE).ljust(HOUR, SERVES), "s00", job="clock")
    fleet.expect(at=range(5 * MINUTE, HOUR))
    fleet.check()


def test_a_server_that_was_never_scraped_is_absent(fleet: Fleet) -> None:
    """A Prometheus that never reached its only server fires TriojamAbsent, not TriojamDown."""
    fleet.add(DEAD * HOUR)
    fleet.expect(firing("TriojamAbsent", "page"), at=minutes(11, 59))
    fleet.check()


def test_a_foreign_job_fires_nothing(fleet: Fleet) -> None:
    """Targets that are not triojam servers may be down, flap and vanish."""
    fleet.add(SERVES * HOUR)
    fleet.add(OTHER * 10 * MINUTE + DEAD * 50 * MINUTE, "s01", job="node")
    fleet.add((OTHER + DEAD) * (HOUR // 2), "s02", job="node")
    fleet.add((OTHER * 10 * MINUTE).ljust(HOUR, GONE), "s03", job="node")
    fleet.expect(at=range(5 * MINUTE, HOUR))
    fleet.check()


def test_an_outage_of_three_days_fires_until_its_end(tmp_path: Path) -> None:
    """A dead server stays a triojam server while it is a target."""
    fleet = Fleet(tmp_path, step=300)
    day = 24 * 12
    fleet.add(SERVES * 12 + DEAD * 3 * day + SERVES * 12)
    fleet.expect(firing("TriojamDown", "page", job="time", instance="s00"), at=range(14, 12 + 3 * day))
    fleet.expect(at=[10, 12 + 3 * day + 6])
    fleet.check()


def test_an_outage_outlives_a_restart_of_prometheus(tmp_path: Path) -> None:
    """After 20 hours without Prometheus, a dead server is still a triojam server."""
    fleet = Fleet(tmp_path, step=300)
    hour = 12
    fleet.add(SERVES * hour + DEAD * hour + UNSEEN * 20 * hour + DEAD * hour)
    fleet.expect(
        firing("TriojamDown", "page", job="time", instance="s00"),
        at=[*range(hour + 2, 2 * hour), *range(22 * hour + 2, 23 * hour)],
    )
    fleet.check()


def test_a_hung_server_is_down(fleet: Fleet) -> None:
    """A server that does not answer scrapes for a while is down; afterwards nothing fires."""
    fleet.add(SERVES * 20 * MINUTE + HANGS * 5 * MINUTE + SERVES * 35 * MINUTE)
    fleet.expect(firing("TriojamDown", "page", job="time", instance="s00"), at=minutes(22, 25))
    fleet.expect(at=[*minutes(5, 20), *minutes(26, 59)])
    fleet.check()


@pytest.mark.parametrize(("number", "severity"), [(1, "page"), (20, "ticket")])
def test_a_server_that_answers_one_scrape_in_four_flaps(fleet: Fleet, number: int, severity: str) -> None:
    """TriojamFlapping fires for it; it is a page if it is the only server."""
    for name in names(number):
        course = (SERVES + HANGS * 3) * 40 * (MINUTE // 4) if name == "s00" else SERVES * 40 * MINUTE
        fleet.add(SERVES * 10 * MINUTE + course, name)
    fleet.expect(at=minutes(5, 10))
    fleet.expect(firing("TriojamFlapping", severity, job="time", instance="s00"), at=minutes(14, 49))
    fleet.check()
