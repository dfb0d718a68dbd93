"""The dashboards of servers and of fleets: a row for each question, the most important first."""

from collections.abc import Mapping

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard

from dashboards.panels import DATASOURCE, assemble
from dashboards.queries import ALERTS, CHOSEN, WINDOW
from dashboards.rows import FLEET_UID, RUNBOOKS_UID, UID
from dashboards.rows.access import admission, tls
from dashboards.rows.capacity import capacity, cost
from dashboards.rows.clock import clock
from dashboards.rows.fleet import haproxy, over_time, service
from dashboards.rows.refusals import refusals
from dashboards.rows.servers import servers
from dashboards.rows.speed import speed
from dashboards.rows.working import working
from dashboards.style import GREY, RED

# Servers of the last week, so that a dead one stays in the selection. A server that was taken out of
# Prometheus's configuration has no `up`, and counts nowhere.
KNOWN = "last_over_time(triojam_build_info{}[1w])"

RUNBOOKS = (
    builders.DashboardLink("Runbooks")
    .type(dashboard.DashboardLinkType.LINK)
    .icon("doc")
    .tooltip("What each alert means, how to check it, and what to do.")
    .url(f"/d/{RUNBOOKS_UID}")
)


def variable(name: str, label: str, labels: str = "") -> builders.QueryVariable:
    """Make a selection at the top of the page: all, one, or several values of a label.

    All stands for the values found, not for every value: other jobs never count.
    """
    everything = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])
    known = KNOWN.format(labels)
    return (
        builders.QueryVariable(name)
        .label(label)
        .query({"query": f"query_result(group by ({name}) ({known}))", "refId": name})
        .regex(f'/{name}="([^"]+)"/')
        .datasource(DATASOURCE)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .current(everything)
    )


def mark(name: str, color: str, expression: str) -> builders.AnnotationQuery:
    """Make marks on all graphs, at the times when the expression has a result."""
    return (
        builders.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(enable=True)
        .icon_color(color)
        .expr(expression)
    )


def overview(runbooks: Mapping[str, int]) -> builders.Dashboard:
    """Build the dashboard. runbooks: the panel of each alert on the dashboard of the runbooks."""
    rows = {
        "Does it work?": working(runbooks),
        "Which clients get no answer, and why?": refusals(),
        "Which clients may connect?": admission(),
        "Is TLS in order?": tls(),
        "How fast is it?": speed(),
        "How full is it?": capacity(),
        "Is the clock right?": clock(),
        "What does it cost?": cost(),
    }
    board = of_servers("triojam", UID, "The state of the servers: a row for each question of an operator.")
    board.link(to_another("Fleet", FLEET_UID, "The servers, the worst first, and the service as a whole."))
    return assemble(board.link(RUNBOOKS), rows)


def fleet() -> builders.Dashboard:
    """Build the dashboard of a fleet."""
    rows = {
        "Does the service work, and which server does not?": [*service(), *servers(), *over_time()],
        "Does HAProxy see the same?": haproxy(),
    }
    board = of_servers("triojam fleet", FLEET_UID, "A service of several servers: the whole, and the worst.")
    board.link(to_another("Overview", UID, "A row for each question about the selected servers."))
    return assemble(board.link(RUNBOOKS), rows)


def to_another(title: str, uid: str, tooltip: str) -> builders.DashboardLink:
    """Make a link that keeps the selection and the time range."""
    return (
        builders.DashboardLink(title)
        .type(dashboard.DashboardLinkType.LINK)
        .icon("dashboard")
        .tooltip(tooltip)
        .url(f"/d/{uid}")
        .include_vars(include_vars=True)
        .keep_time(keep_time=True)
    )


def of_servers(title: str, uid: str, description: str) -> builders.Dashboard:
    """Begin a dashboard: the selection at the top, and the marks on its graphs."""
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["triojam"])
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .time("now-30m", "now")
        .refresh("30s")
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("job", "Job"))
        .with_variable(variable("instance", "Instance", '{job=~"$job"}'))
        .annotation(mark("Alerts", RED, ALERTS))
        .annotation(mark("Restarts", GREY, f"changes(process_start_time_seconds{CHOSEN}[{WINDOW}]) > 0"))
    )
