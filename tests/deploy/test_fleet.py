"""A fleet behind a real HAProxy, in network namespaces: restarts lose nothing, all counts agree, limits hold.

`fleet.py` makes the fleet and has a command for longer runs.
"""

from typing import Any

import pytest

from tests.deploy.fleet import PER_SOURCE, SERVERS, STAYING, run

pytestmark = pytest.mark.xdist_group("crowds")

# Each load asks once before it begins.
LOADS = 3


@pytest.fixture(scope="module")
def roll() -> dict[str, Any]:
    """Return the figures of two rolling restarts."""
    return run(["roll", "--requests", "0"])


@pytest.mark.parametrize("load", ["visits", "staying"])
def test_a_rolling_restart_loses_no_request(roll: dict[str, Any], load: str) -> None:
    """Every request is answered while each server is restarted, on new connections and on those that stay."""
    figures = roll[load]
    assert figures["sent"] == figures["answered"] > 0
    assert (figures["failed"], figures["unconnected"], figures["unasked"]) == ({}, {}, {})
    assert figures["server_counted"]["restarts"] == len(SERVERS)
    assert figures["balance_faults"] == []


def test_staying_clients_connect_again_only_after_a_restart(roll: dict[str, Any]) -> None:
    """A client of a stopping server connects again, the others stay."""
    assert STAYING < roll["staying"]["connections_opened"] <= STAYING * (1 + len(SERVERS))


def test_load_balances_with_the_fleet(roll: dict[str, Any]) -> None:
    """`load` adds the counters of the three servers up, and they are what it sent."""
    figures = roll["at rest"]
    assert (figures["status"], figures["sent"], figures["failed"]) == (0, 1000, {})
    assert figures["server_counted"] == {
        "requests": 1000, "responses": 1000, "rejected": 0, "send_errors": 0, "restarts": 0
    }  # fmt: skip


def test_all_processes_answered_what_the_clients_got(roll: dict[str, Any]) -> None:
    """The totals of all processes, in their last log lines, are the answers that the clients got."""
    answered = sum(roll[load]["answered"] for load in ("visits", "staying", "at rest"))
    assert roll["totals"]["responses"] == answered + LOADS


def test_haproxy_and_the_servers_count_the_same_connections(roll: dict[str, Any]) -> None:
    """HAProxy's sessions, less repeated attempts, are the servers' connections, and these the clients'."""
    totals = roll["totals"]
    opened = sum(roll[load]["connections_opened"] for load in ("visits", "staying", "at rest"))
    assert totals["sessions"] - totals["retries"] == totals["connections"] == opened + LOADS


def test_limits_by_source_hold_for_the_clients_behind_haproxy() -> None:
    """Each client has its own share on each server, and a denied client gets nothing."""
    figures = run(["limits"])
    allowed = PER_SOURCE * len(SERVERS)
    replies = {name: [each.partition(" ") for each in got] for name, got in figures["replies"].items()}
    assert [word for word, *_ in replies["greedy"]] == ["JAM"] * allowed + ["ERROR"] * 5
    assert {reason for word, _, reason in replies["greedy"] if word == "ERROR"} == {"per_source"}
    assert [word for word, *_ in replies["good"]] == ["JAM"] * allowed
    assert figures["replies"]["denied"] == ["", ""]
    # The server knows this client by its address, with HAProxy and without.
    assert figures["replies"]["greedy, directly"] == ["ERROR per_source"]
    assert figures["rejected"] == {"denied": 2, "per_source": 6, "proxy_header": 0}
    totals = figures["totals"]
    assert totals["responses"] == 2 * allowed
    assert totals["connections"] == totals["sessions"] + 1 == 2 * allowed + 5 + 2 + 1
