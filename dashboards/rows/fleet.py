"""The rows about a fleet: whether the service as a whole works, and what HAProxy sees of it."""

from grafana_foundation_sdk.models import units

from dashboards.panels import AnyPanel, information, lines, number
from dashboards.queries import BACKEND, CHOSEN, EACH, HERE, JOBS, MOST_LINES, WINDOW, largest, rate
from dashboards.style import (
    AMBER,
    BLUE,
    DELAY_STEPS,
    GREEN,
    GREY,
    OBJECTIVE,
    PER_SECOND,
    PURPLE,
    RATIO_DECIMALS,
    RATIO_STEPS,
    RED,
)

NO_RULES = ("NO RULES", AMBER)
NO_REQUESTS = ("no requests", GREY)
NO_HAPROXY = ("no HAProxy", GREY)
# The same limits as in the alerts.
SERVING_STEPS = ((None, RED), (0.6, AMBER), (1, GREEN))
BURN_STEPS = ((None, GREEN), (1, AMBER), (14.4, RED))


def service() -> list[AnyPanel]:
    """Make the numbers about whole jobs."""
    return [
        number(
            "Servers that serve",
            "Share of the servers that accept clients, of the worst selected job. Below 60 %, too few are "
            "left: a page. A single dead server of many is a ticket. NO RULES: Prometheus has not loaded "
            "triojam's rules.",
            f"min(job:triojam:serving_ratio{JOBS})",
            unit=units.PercentUnit,
            steps=SERVING_STEPS,
            empty=NO_RULES,
        ),
        information(
            number(
                "Servers",
                "Servers that Prometheus scrapes, or tries to scrape.",
                f"sum(job:triojam:servers{JOBS})",
                empty=NO_RULES,
            ),
            GREY,
        ),
        number(
            "Success in an hour",
            "Share of the owed answers that the whole job delivered in the last hour; the objective is "
            "99.9 %. Of several jobs, the worst.",
            f"min(1 - job:triojam_failed:ratio_rate1h{JOBS})",
            unit=units.PercentUnit,
            steps=RATIO_STEPS,
            decimals=RATIO_DECIMALS,
            empty=NO_REQUESTS,
        ),
        number(
            "Burn rate in an hour",
            "How fast the whole job uses up its error budget. At 1, the budget of a month lasts a month. At "
            "14.4, an hour uses 2 % of it: a page.",
            f"max(job:triojam_failed:ratio_rate1h{JOBS}) / {1 - OBJECTIVE:.3g}",
            steps=BURN_STEPS,
            decimals=1,
            empty=NO_REQUESTS,
        ),
        number(
            "Clocks differ by",
            "By how much the clocks of a job's servers differ at least: clients of two servers see this "
            "difference.",
            f"max(job:triojam_clock:spread_seconds{JOBS})",
            unit=units.Seconds,
            steps=DELAY_STEPS,
            empty=NO_RULES,
        ),
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
    ]


def over_time() -> list[AnyPanel]:
    """Make the graphs of the servers, and of the load of the busiest ones."""
    return [
        lines(
            "Servers over time",
            "Servers of the selected jobs, and those that accept clients.",
            {
                "servers": f"sum(job:triojam:servers{JOBS})",
                "serving": f"sum(job:triojam:serving{JOBS})",
            },
            unit=units.Short,
            color={"servers": GREY, "serving": GREEN},
            decimals=0,
        ),
        lines(
            "Requests of the busiest servers",
            f"Of more than {MOST_LINES} servers, those with the most requests. Behind a balancer, all "
            "servers have about the same load.",
            {HERE: largest(f"sum {EACH} (rate(triojam_requests_total{CHOSEN}[{WINDOW}]))")},
            unit=PER_SECOND,
            color=BLUE,
        ),
    ]


def haproxy() -> list[AnyPanel]:
    """Make the panels about HAProxy's view, beside triojam's."""

    def counted(metric: str) -> str:
        return f"sum(rate(haproxy_{metric}{BACKEND}[{WINDOW}]))"

    return [
        number(
            "Servers up",
            "Servers that HAProxy uses. It asks each one for /readyz, and so notices a lame duck within a "
            "second.",
            f"sum(haproxy_backend_active_servers{BACKEND})",
            steps=((None, RED), (1, GREEN)),
            empty=NO_HAPROXY,
            height=8,
        ),
        lines(
            "Connections: HAProxy and triojam",
            "The sessions that HAProxy opened to the servers, and the connections that the servers accepted. "
            "They are equal, except for connections that do not come through HAProxy, and for attempts that "
            "HAProxy repeated. All panels of this row are about the backend triojam of haproxy.cfg.",
            {
                "HAProxy's sessions": counted("server_sessions_total"),
                "triojam's connections": rate("triojam_connections_total"),
            },
            unit=PER_SECOND,
            color={"HAProxy's sessions": GREY, "triojam's connections": PURPLE},
            width=10,
        ),
        lines(
            "Open: HAProxy and triojam",
            "Open sessions of HAProxy's servers, and open connections of triojam's servers.",
            {
                "HAProxy's sessions": f"sum(haproxy_server_current_sessions{BACKEND})",
                "triojam's connections": f"sum(triojam_connections_open{CHOSEN})",
            },
            unit=units.Short,
            color={"HAProxy's sessions": GREY, "triojam's connections": PURPLE},
            width=10,
        ),
        lines(
            "Attempts that failed",
            "redispatches: a connection to a server failed, and HAProxy connected to another one. retries: "
            "it connected to the same server again. errors: it gave up, and closed the client.",
            {
                "retries": counted("backend_retry_warnings_total"),
                "redispatches": counted("backend_redispatch_warnings_total"),
                "errors": counted("backend_connection_errors_total"),
            },
            unit=PER_SECOND,
            color={"retries": AMBER, "redispatches": GREY, "errors": RED},
        ),
        lines(
            "Sessions of each server",
            f"Open sessions, by the server's name in haproxy.cfg. Of more than {MOST_LINES} servers, those "
            "with the most sessions.",
            {"{{server}}": largest(f"haproxy_server_current_sessions{BACKEND}")},
            unit=units.Short,
            color=PURPLE,
        ),
    ]
