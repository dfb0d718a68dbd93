"""The first row: does it work? Its queries run all the time, so they are few."""

from collections.abc import Mapping

from grafana_foundation_sdk.builders import stat
from grafana_foundation_sdk.models import common, dashboard, units

from dashboards.panels import AnyPanel, information, lines, number, query, states
from dashboards.queries import (
    AHEAD,
    ALERTS,
    CHOSEN,
    FULLNESS,
    HERE,
    REFUSED_AS_BUSY,
    STATE_NOW,
    UNACCOUNTED,
    quantile,
    rate,
    served,
)
from dashboards.rows import RUNBOOKS_UID
from dashboards.style import (
    AMBER,
    BLUE,
    DELAY_STEPS,
    FULLNESS_STEPS,
    GREEN,
    GREY,
    NONE_BUT_ZERO,
    NOT_ABOVE_ZERO,
    PER_SECOND,
    RATIO_DECIMALS,
    RATIO_STEPS,
    RED,
    STATE,
)
from dashboards.tables import Column, Style, rows_of

NO_SERVER = ("NO SERVER", RED)
NO_REQUESTS = ("no requests", GREY)
MOST_STATES = 20


def working(runbooks: Mapping[str, int]) -> list[AnyPanel]:
    """Make the panels about whether it works. runbooks: the panel of each alert's runbook."""
    return [*health(), *load(), requests(), alerts(runbooks), each_state()]


def health() -> list[AnyPanel]:
    """Make the numbers that are red if something is wrong."""
    return [
        number(
            "Servers down",
            "Selected servers that Prometheus cannot scrape: the process ended or hangs, or the network "
            "between them is down. NO SERVER: Prometheus scrapes none of the selection.",
            f"count(up{CHOSEN} == 0) or 0 * count(up{CHOSEN})",
            unit="suffix:DOWN",
            words={0: ("all up", GREEN)},
            steps=((None, RED),),
            empty=NO_SERVER,
        ),
        number(
            "Servers not ready",
            "Selected servers that accept no new clients: they are down, they start, or they drain after the "
            "stop signal.",
            f"count(up{CHOSEN}) - (count(triojam_ready{CHOSEN} == 1) or vector(0))",
            unit="suffix:NOT READY",
            words={0: ("all ready", GREEN)},
            steps=((None, RED),),
            empty=NO_SERVER,
        ),
        number(
            "Alerts firing",
            "Firing alerts about triojam, without those of severity info, which only explain others. The "
            "table below has each one and its runbook. NO RULES: Prometheus has not loaded triojam's rules, "
            "so no alert can fire.",
            f'count({ALERTS[:-1]}, severity!="info"}}) '
            f"or 0 * count(last_over_time(instance:triojam_unaccounted:sum{CHOSEN}[1d]))",
            words={0: ("none", GREEN)},
            steps=((None, RED),),
            empty=("NO RULES", AMBER),
        ),
        number(
            "Success ratio",
            "Share of the owed answers that were delivered; the objective is 99.9 %. Failures are: "
            "answers that a client did not read, requests rejected by a draining server, and connections "
            "refused as busy. Bad lines, and clients that closed the connection first, are not failures.",
            served(),
            unit=units.PercentUnit,
            steps=RATIO_STEPS,
            decimals=RATIO_DECIMALS,
            empty=NO_REQUESTS,
            trend=True,
            least=None,
        ),
        number(
            "Refused as busy",
            "Connections refused because a server had reached its limit of connections.",
            REFUSED_AS_BUSY,
            unit=PER_SECOND,
            words={0: ("none", GREEN)},
            steps=NOT_ABOVE_ZERO,
            trend=True,
        ),
        number(
            "Largest clock offset",
            "The largest difference between the served time of a server and Prometheus's clock. It "
            "includes the duration of the scrape, so a few milliseconds are normal.",
            f"max(abs({AHEAD}))",
            unit=units.Seconds,
            steps=DELAY_STEPS,
            trend=True,
        ),
    ]


def load() -> list[AnyPanel]:
    """Make the numbers about the load, and what runs."""
    return [
        information(
            number(
                "Requests",
                "Requests of all selected servers.",
                rate("triojam_requests_total"),
                unit=units.RequestsPerSecond,
                trend=True,
            ),
            BLUE,
        ),
        number(
            "99 % answered in",
            "99 of 100 answers took at most this time: from the complete line to its answer in the "
            "kernel, without the network.",
            quantile(0.99, "triojam_request_duration_seconds"),
            unit=units.Seconds,
            steps=DELAY_STEPS,
            empty=NO_REQUESTS,
            trend=True,
        ),
        number(
            "Fullest server",
            "Open connections as a share of the limit: the largest of the selected servers. At 100 %, "
            "the server refuses new clients.",
            f"max({FULLNESS})",
            unit=units.PercentUnit,
            steps=FULLNESS_STEPS,
            decimals=1,
            trend=True,
        ),
        number(
            "Unaccounted",
            "Requests less responses, rejected requests and send errors: the minimum of the last minute. It "
            "must be 0. Above 0: requests were lost, or clients do not read their answers (then send errors "
            "follow). Below 0: something was counted twice.",
            UNACCOUNTED,
            steps=NONE_BUT_ZERO,
            decimals=0,
        ),
        information(
            number(
                "Shortest uptime",
                "Time since the last start of a selected server.",
                f"time() - max(process_start_time_seconds{CHOSEN})",
                unit=units.DurationSeconds,
            ),
            GREY,
        ),
        information(versions(), GREY),
    ]


def versions() -> stat.Panel:
    """Make the list of the versions that run."""
    panel = number(
        "Version",
        "Versions of the selected servers. During an upgrade there are two.",
        "",
        empty=("no data", GREY),
    )
    running = query(0, f"count by (version) (triojam_build_info{CHOSEN})", "{{version}}").instant()
    return panel.targets([running]).text_mode(common.BigValueTextMode.NAME)


def requests() -> AnyPanel:
    """Make the graph of requests and their results."""
    return lines(
        "Requests and their results",
        "Each request ends as a response, as a rejection or as a send error, so the first line is the sum of "
        "the next three. A refused connection brought no request.",
        {
            "requests": rate("triojam_requests_total"),
            "responses": rate("triojam_responses_total"),
            "rejected": rate("triojam_rejected_total"),
            "send errors": rate("triojam_response_send_errors_total"),
            "refused connections": rate("triojam_connections_rejected_total"),
        },
        unit=PER_SECOND,
        color={
            "requests": BLUE,
            "responses": GREEN,
            "rejected": AMBER,
            "send errors": RED,
            "refused connections": RED,
        },
    ).override_by_name(
        "refused connections",
        [dashboard.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 10]})],
    )


def alerts(runbooks: Mapping[str, int]) -> AnyPanel:
    """Make the table of firing alerts; a click on an alert opens its runbook."""
    url = f"/d/{RUNBOOKS_UID}?viewPanel=${{__data.fields.runbook.text}}"
    severities = {"page": ("page", RED), "ticket": ("ticket", AMBER), "info": ("info", GREY)}
    return rows_of(
        "Which alerts fire?",
        "A row for each firing alert. A click on its name opens its runbook: what it means, how to check it, "
        "what to do. Severity page: act now; ticket: act within days; info: it explains other alerts.",
        [Column("alerts", f'label_join({ALERTS}, "runbook", "", "alertname")')],
        {
            "alertname": Style(links={"Open the runbook": url}),
            "severity": Style(words=severities),
            # The number of the runbook's panel, for the link.
            "runbook": Style(
                words={name: (str(panel), GREY) for name, panel in runbooks.items()}, hidden=True
            ),
        },
        order=["alertname", "severity", "instance", "job"],
        left_out=["alerts", "alertstate", "__name__"],
        empty="no alert fires",
        width=12,
        height=8,
    )


def each_state() -> AnyPanel:
    """Make the graph of the states."""
    return states(
        "State of each server",
        "Ready; not ready: it starts; draining: from the stop signal until the end; down: Prometheus cannot "
        f"scrape it. Of more than {MOST_STATES} servers, those that are down or not ready come first.",
        f"bottomk({MOST_STATES}, {STATE_NOW})",
        HERE,
        STATE,
    )
