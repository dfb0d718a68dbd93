"""What is on the overview: a row for each question that an operator asks, the most important first."""

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard, units

from dashboards.panels import (
    BLUE,
    DATASOURCE,
    GREEN,
    ORANGE,
    RED,
    AnyPanel,
    Column,
    assemble,
    heat,
    lines,
    number,
    rows_of_instances,
    states,
)

UID = "triojam-overview"
RUNBOOKS_UID = "triojam-runbooks"

# The series that were chosen at the top of the page.
CHOSEN = '{job=~"$job", instance=~"$instance"}'
# Of alerts: one that is about a whole job has no instance, and is shown whichever are chosen.
ALERTS = 'ALERTS{alertstate="firing", alertname=~"Triojam.*", job=~"$job|", instance=~"$instance|"}'
# Long enough for two scrapes at least, whatever the zoom.
WINDOW = "$__rate_interval"
EACH = "by (job, instance)"
HERE = "{{instance}}"

OBJECTIVE = 0.999  # of the times that are owed
RATIO_STEPS = ((None, RED), (0.99, ORANGE), (OBJECTIVE, GREEN))
NONE_BUT_ZERO = ((None, RED), (0, GREEN), (0.000001, RED))
FULLNESS_STEPS = ((None, GREEN), (0.8, ORANGE), (0.95, RED))
LAG_STEPS = ((None, GREEN), (0.1, ORANGE), (0.5, RED))
# Answers carry whole seconds, so half a second is what a client can see.
OFFSET_STEPS = ((None, RED), (-0.5, ORANGE), (-0.1, GREEN), (0.1, ORANGE), (0.5, RED))

UP = {1: ("up", GREEN), 0: ("DOWN", RED)}
READY = {1: ("ready", GREEN), 0: ("NOT READY", RED)}
STATE = {
    -1: ("down", RED),
    0: ("not ready", ORANGE),
    1: ("ready", GREEN),
    2: ("draining", BLUE),
}
SYNCHRONIZED = {1: ("synchronized", GREEN), 0: ("NOT SYNCHRONIZED", RED)}
LEAP = {
    0: ("none", GREEN),
    1: ("second to be added", ORANGE),
    2: ("second to be left out", ORANGE),
    3: ("second in progress", ORANGE),
    4: ("second has passed", GREEN),
}


def rate(metric: str, by: str = "", labels: str = CHOSEN) -> str:
    """Return the expression for how often something is counted, in all, or by a label."""
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate({metric}{labels}[{WINDOW}]))"


def ratio(part: str, whole: str) -> str:
    """Return the expression for a share; without a result, rather than NaN, where there is nothing."""
    return f"{part} / ({whole} > 0)"


def quantile(share: float, metric: str, by: str = "le") -> str:
    """Return the expression for a quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', by)})"


def mean(metric: str) -> str:
    """Return the expression for the mean of a histogram."""
    return ratio(rate(f"{metric}_sum"), rate(f"{metric}_count"))


def hourly(metric: str) -> str:
    """Return the expression for how often something was counted within the last hour."""
    return f"sum(increase({metric}{CHOSEN}[1h]))"


# Times that were owed and not delivered, as the recording rules of ../prometheus/rules have them: nobody is
# owed a time for a bad line, or after hanging up.
FAILED = " + ".join(
    rate(metric, labels=f'{{reason=~"{reasons}", {CHOSEN[1:]}')
    for metric, reasons in (
        ("triojam_response_send_errors_total", "timeout|shutdown"),
        ("triojam_rejected_total", "draining"),
        ("triojam_connections_rejected_total", "busy"),
    )
)
SERVED = ratio(rate("triojam_responses_total"), f"({rate('triojam_responses_total')} + {FAILED})")
ANSWERED = ratio(rate("triojam_responses_total"), rate("triojam_requests_total"))

# Its least of a minute: what is in flight at one scrape is not at the next, what is lost is at all. With a
# step of its own: without one it is Prometheus's evaluation interval, which may be longer than that minute.
UNACCOUNTED = f"""min_over_time((
  sum(triojam_requests_total{CHOSEN})
  - sum(triojam_responses_total{CHOSEN})
  - sum(triojam_rejected_total{CHOSEN})
  - sum(triojam_response_send_errors_total{CHOSEN})
)[1m:5s])"""

FULLNESS = f"triojam_connections_open{CHOSEN} / (triojam_connections_limit{CHOSEN} > 0)"
AHEAD = f"triojam_clock_seconds{CHOSEN} - timestamp(triojam_clock_seconds{CHOSEN})"


def working() -> list[AnyPanel]:
    """Show whether it works."""
    return [
        number(
            "Up",
            "Whether Prometheus reaches every chosen server; down if it misses one.",
            f"min(up{CHOSEN})",
            words=UP,
            steps=((None, RED), (1, GREEN)),
        ),
        number(
            "Ready",
            "Whether every chosen server takes new clients. It does not while it starts, and from the "
            "signal to stop.",
            f"min(triojam_ready{CHOSEN})",
            words=READY,
            steps=((None, RED), (1, GREEN)),
        ),
        number(
            "Unaccounted",
            "Requests less responses, rejected ones and send errors: the least of the last minute. It must "
            "be 0. Above, requests got lost, or clients do not take their answers (send errors follow "
            "then); below, something was counted twice.",
            UNACCOUNTED,
            steps=NONE_BUT_ZERO,
            decimals=0,
        ),
        number(
            "Success ratio",
            "Of the times that were owed, how many were delivered; the objective is 99.9 %. A client that "
            "took no answer, one that a draining server turned away and one that was refused as busy count "
            "against it; bad lines and clients that hung up do not.",
            SERVED,
            unit=units.PercentUnit,
            steps=RATIO_STEPS,
            decimals=3,
            empty="no requests",
        ),
        number(
            "Bugs met in an hour",
            "Exceptions that were contained to one connection, within the last hour. Each is a bug; the log "
            "has its traceback.",
            hourly("triojam_internal_errors_total"),
            steps=((None, GREEN), (0.000001, RED)),
            decimals=0,
        ),
        number(
            "Alerts firing",
            "How many alerts on triojam fire now, less those that only explain others (severity info). "
            "Which ones: the red marks on the graphs, and Prometheus's own page of alerts. What to do: "
            "Runbooks, at the top.",
            f'count({ALERTS[:-1]}, severity!="info"}}) or vector(0)',
            steps=((None, GREEN), (1, RED)),
        ),
        lines(
            "Requests and what became of them",
            "Each request ends as a response, as rejected or as a send error, so the first line is the sum "
            "of the others.",
            {
                "requests": rate("triojam_requests_total"),
                "responses": rate("triojam_responses_total"),
                "rejected": rate("triojam_rejected_total"),
                "send errors": rate("triojam_response_send_errors_total"),
            },
            unit=units.RequestsPerSecond,
        ),
        lines(
            "Success ratio",
            "Of the times that were owed, and of all requests, how many were delivered. Where only the "
            "second falls, clients send what is no request, or hang up.",
            {"of times owed": SERVED, "of all requests": ANSWERED},
            unit=units.PercentUnit,
            steps=RATIO_STEPS,
            least=None,
            most=1,
        ),
        states(
            "State of each server",
            "Ready; not ready, as while it starts; draining, from the signal to stop until the end; down, "
            "when Prometheus did not reach it.",
            f"(triojam_ready{CHOSEN} + 2 * triojam_draining{CHOSEN}) or (up{CHOSEN} - 1)",
            HERE,
            STATE,
        ),
    ]


def refusals() -> list[AnyPanel]:
    """Show for whom not, and why."""
    return [
        lines(
            "Rejected requests, by reason",
            "All but draining are the client's mistake: bad_command is not TIME or QUIT, bad_terminator an "
            "LF without its CR, too_long a line without end, timeout a line that stopped halfway, "
            "incomplete a connection that did.",
            {"{{reason}}": rate("triojam_rejected_total", "reason")},
            unit=units.RequestsPerSecond,
            stacked=True,
            width=8,
        ),
        lines(
            "Send errors, by reason",
            "Times that were due and could not be delivered: timeout is a client that does not take its "
            "answers, reset one that has gone, shutdown one that the end of a drain cut off.",
            {"{{reason}}": rate("triojam_response_send_errors_total", "reason")},
            unit=units.RequestsPerSecond,
            stacked=True,
            width=8,
        ),
        lines(
            "Refused connections, by reason",
            "Clients that were turned away before any request. busy: as many as the limit were there "
            "already.",
            {"{{reason}}": rate("triojam_connections_rejected_total", "reason")},
            unit=units.CountsPerSecond,
            stacked=True,
            width=8,
        ),
        lines(
            "Ends of connections, by reason",
            "eof and quit are the client's wish, idle and drain the server's; all the others are a client "
            "that misbehaved or was lost, and internal_error is a bug.",
            {"{{reason}}": rate("triojam_disconnects_total", "reason")},
            unit=units.CountsPerSecond,
            stacked=True,
        ),
        lines(
            "The server's own troubles, in an hour",
            "Bugs contained to one connection, reloads of the settings, by result, log lines dropped because "
            "nobody read them, and passwords for the metrics listener: wrong ones, and those not looked at "
            "because too many were wrong before. How many within the last hour.",
            {
                "bugs": hourly("triojam_internal_errors_total"),
                "reload: {{result}}": f"sum by (result) (increase(triojam_config_reloads_total{CHOSEN}[1h]))",
                "log lines dropped": hourly("triojam_log_messages_dropped_total"),
                "sources forgotten": hourly("triojam_client_table_evictions_total"),
                "web password: {{reason}}": "sum by (reason) (increase("
                f'triojam_web_auth_failures_total{{reason=~"wrong|limited", {CHOSEN[1:]}[1h]))',
            },
            unit=units.Short,
        ),
    ]


def speed() -> list[AnyPanel]:
    """Show how fast it is."""
    duration = "triojam_request_duration_seconds"
    receive = "triojam_request_receive_seconds"
    lag = "triojam_event_loop_lag_seconds"
    return [
        heat(
            "Time to answer: how many took how long",
            "From the whole line in hand to its answer taken by the kernel; the network is not in it. The "
            "darker, the more answers.",
            f"sum by (le) (increase({duration}_bucket{CHOSEN}[{WINDOW}]))",
        ),
        lines(
            "Time to answer: quantiles",
            "The share of answers in the legend took at most this long. Interpolated within a bucket, so "
            "below 50 µs these are estimates.",
            {
                "50 %": quantile(0.5, duration),
                "90 %": quantile(0.9, duration),
                "99 %": quantile(0.99, duration),
                "99.9 %": quantile(0.999, duration),
                "mean": mean(duration),
            },
            unit=units.Seconds,
        ),
        lines(
            "Time to receive a line in pieces",
            "From the first byte of a line to its last, of lines that did not come at once: slow clients and "
            "slow networks, not a slow server. Empty while all lines come whole.",
            {
                "50 %": quantile(0.5, receive),
                "99 %": quantile(0.99, receive),
                "mean": mean(receive),
                "lines in pieces a second": rate(f"{receive}_count"),
            },
            unit=units.Seconds,
        ).override_by_name(
            "lines in pieces a second",
            [
                dashboard.DynamicConfigValue(id_val="unit", value=units.CountsPerSecond),
                dashboard.DynamicConfigValue(id_val="custom.axisPlacement", value="right"),
            ],
        ),
        lines(
            "Event loop lag",
            "How late the scheduler woke a task that asks four times a second. All clients share one loop: "
            "if this rises, the process has too little CPU time, or something holds it up.",
            {
                "50 %": quantile(0.5, lag),
                "99 %": quantile(0.99, lag),
                "mean": mean(lag),
            },
            unit=units.Seconds,
            steps=LAG_STEPS,
        ),
    ]


def fullness() -> list[AnyPanel]:
    """Show how full it is."""
    return [
        lines(
            "Connections and their limit",
            "Connections open now, and the most there may be, of all chosen servers together.",
            {
                "open": f"sum(triojam_connections_open{CHOSEN})",
                "limit": f"sum(triojam_connections_limit{CHOSEN})",
            },
            unit=units.Short,
            width=8,
        ),
        lines(
            "Share of the limit in use",
            "Connections open, as a share of the limit, on each server. At 100 % new clients are refused.",
            {HERE: FULLNESS},
            unit=units.PercentUnit,
            steps=FULLNESS_STEPS,
            most=1,
            width=8,
        ),
        lines(
            "New connections",
            "Connections accepted, refused ones included. A client that connects for each request costs far "
            "more than one that stays.",
            {"accepted": rate("triojam_connections_total")},
            unit=units.CountsPerSecond,
            width=8,
        ),
        lines(
            "Lane hand-overs, by cause",
            "Clients that the fast lane handed over to a task of their own: line is one to be rejected, or a "
            "QUIT; send is answers that did not fit; timeout and eof are lines cut off. Many of them make "
            "the server slower.",
            {"{{cause}}": rate("triojam_lane_handovers_total", "cause")},
            unit=units.CountsPerSecond,
            stacked=True,
        ),
        lines(
            "Failed accepts, by errno",
            "EMFILE and ENFILE mean that descriptors have run out, of the process or of the machine. "
            "ECONNABORTED is a client that had gone already.",
            {"{{errno}}": rate("triojam_accept_errors_total", "errno")},
            unit=units.CountsPerSecond,
            stacked=True,
        ),
    ]


def clock() -> list[AnyPanel]:
    """Show whether the clock is right."""
    return [
        number(
            "Clock",
            "Whether the kernel of every chosen server holds its clock to be synchronized.",
            f"min(triojam_clock_synchronized{CHOSEN})",
            words=SYNCHRONIZED,
            steps=((None, RED), (1, GREEN)),
            width=6,
        ),
        number(
            "Leap second",
            "Whether the kernel has been told of a leap second: the largest state of the chosen servers.",
            f"max(triojam_leap_state{CHOSEN})",
            words=LEAP,
            steps=((None, GREEN), (1, ORANGE)),
            width=6,
        ),
        number(
            "Largest possible error",
            "How wrong the clock may be by the kernel's reckoning, at worst: the largest of the chosen "
            "servers.",
            f"max(triojam_clock_max_error_seconds{CHOSEN})",
            unit=units.Seconds,
            steps=((None, GREEN), (0.1, ORANGE), (0.5, RED)),
            width=6,
        ),
        number(
            "Steps in an hour",
            "How often a clock was moved by more than half a second within the last hour. Clients have seen "
            "time jump.",
            hourly("triojam_clock_steps_total"),
            steps=((None, GREEN), (0.000001, RED)),
            decimals=0,
            width=6,
        ),
        lines(
            "Ahead of Prometheus's clock",
            "The clock that answers are made from less the time of the scrape by Prometheus's own clock; "
            "above 0 the server is ahead. It includes what the scrape took, so a few milliseconds say "
            "nothing. One server alone is wrong itself; if all are, look at Prometheus's clock.",
            {HERE: AHEAD},
            unit=units.Seconds,
            steps=OFFSET_STEPS,
            least=None,
        ),
        lines(
            "Offset and largest error by the kernel",
            "What the kernel still has to correct, and how wrong its clock may be at worst, as the time "
            "daemon has told it.",
            {
                f"{HERE} offset": f"triojam_clock_offset_seconds{CHOSEN}",
                f"{HERE} largest error": f"triojam_clock_max_error_seconds{CHOSEN}",
            },
            unit=units.Seconds,
            least=None,
        ),
    ]


def cost() -> list[AnyPanel]:
    """Show what it costs."""
    cpu = "process_cpu_seconds_total"
    return [
        lines(
            "CPU",
            "Cores in use by each process. A server has one event loop, so 100 % is the most it can use.",
            {HERE: f"rate({cpu}{CHOSEN}[{WINDOW}])"},
            unit=units.PercentUnit,
            steps=FULLNESS_STEPS,
            width=8,
        ),
        lines(
            "Memory",
            "Memory of each process that is not swapped out.",
            {HERE: f"process_resident_memory_bytes{CHOSEN}"},
            unit=units.BytesIEC,
            width=8,
        ),
        lines(
            "File descriptors",
            "Descriptors in use by each process, and the most that it may have. Every connection takes one.",
            {
                f"{HERE} open": f"process_open_fds{CHOSEN}",
                f"{HERE} limit": f"process_max_fds{CHOSEN}",
            },
            unit=units.Short,
            width=8,
        ),
        lines(
            "CPU time per request",
            "CPU time of all chosen processes, by the requests they decided on. With few requests it is "
            "mostly what the process takes for itself.",
            {"per request": ratio(rate(cpu), rate("triojam_requests_total"))},
            unit=units.Seconds,
            width=8,
        ),
        lines(
            "Garbage collections, by generation",
            "How often Python's collector ran. The last generation is the slow one, and is to be rare.",
            {"generation {{generation}}": rate("python_gc_collections_total", "generation")},
            unit=units.CountsPerSecond,
            width=8,
        ),
        lines(
            "Garbage",
            "Objects that Python's collector found: collected ones were part of a cycle; uncollectable ones "
            "are a leak.",
            {
                "collected": rate("python_gc_objects_collected_total"),
                "uncollectable": rate("python_gc_objects_uncollectable_total"),
            },
            unit=units.CountsPerSecond,
            width=8,
        ),
    ]


def instances() -> list[AnyPanel]:
    """Show which server it is."""
    info = "version, python, trio"
    duration = "triojam_request_duration_seconds"

    def each(metric: str) -> str:
        return f"sum {EACH} ({metric}{CHOSEN})"

    def each_rate(metric: str) -> str:
        return f"sum {EACH} (rate({metric}{CHOSEN}[{WINDOW}]))"

    columns = [
        Column("Up", each("up"), words=UP),
        Column("Ready", each("triojam_ready"), words=READY),
        Column("Info", f"sum by (job, instance, {info}) (triojam_build_info{CHOSEN})"),
        Column("Uptime", f"time() - {each('process_start_time_seconds')}", unit=units.Seconds),
        Column("Requests", each_rate("triojam_requests_total"), unit=units.RequestsPerSecond),
        Column(
            "Answered",
            ratio(each_rate("triojam_responses_total"), each_rate("triojam_requests_total")),
            unit=units.PercentUnit,
        ),
        Column("99 % within", quantile(0.99, duration, "job, instance, le"), unit=units.Seconds),
        Column("Connections", each("triojam_connections_open")),
        Column(
            "Of the limit",
            f"sum {EACH} ({FULLNESS})",
            unit=units.PercentUnit,
            steps=FULLNESS_STEPS,
        ),
        Column("Ahead", f"sum {EACH} ({AHEAD})", unit=units.Seconds, steps=OFFSET_STEPS),
        Column("CPU", each_rate("process_cpu_seconds_total"), unit=units.PercentUnit),
        Column("Memory", each("process_resident_memory_bytes"), unit=units.BytesIEC),
    ]
    return [
        rows_of_instances(
            "Servers",
            "A row for each server, as it is now: to see at a glance which one is not like the others. "
            "Ahead is by Prometheus's clock.",
            columns,
            labels=["job", "instance", "version", "python", "trio"],
            hidden=["Info"],
        )
    ]


ROWS = {
    "Is it working?": working,
    "For whom not, and why?": refusals,
    "How fast?": speed,
    "How full?": fullness,
    "Is the clock right?": clock,
    "What does it cost?": cost,
    "Which server is it?": instances,
}


def variable(name: str, label: str, query: str) -> builders.QueryVariable:
    """Make a choice at the top of the page: all, one, or several values of a label."""
    everything = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        builders.QueryVariable(name)
        .label(label)
        .query({"query": query, "refId": name})
        .datasource(DATASOURCE)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".+")
        .current(everything)
    )


def mark(name: str, color: str, expression: str) -> builders.AnnotationQuery:
    """Make marks on all graphs, wherever the expression has a result."""
    return (
        builders.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(enable=True)
        .icon_color(color)
        .expr(expression)
    )


def overview() -> builders.Dashboard:
    """Build the dashboard."""
    board = (
        builders.Dashboard("triojam")
        .uid(UID)
        .description("Is the time server working, for whom not, and why: a row for each question.")
        .tags(["triojam"])
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .time("now-30m", "now")
        .refresh("10s")
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("job", "Job", "label_values(triojam_build_info, job)"))
        .with_variable(
            variable("instance", "Instance", 'label_values(triojam_build_info{job=~"$job"}, instance)')
        )
        .annotation(mark("Alerts", RED, ALERTS))
        .annotation(mark("Restarts", BLUE, f"changes(process_start_time_seconds{CHOSEN}[{WINDOW}]) > 0"))
        .link(
            builders.DashboardLink("Runbooks")
            .type(dashboard.DashboardLinkType.LINK)
            .icon("doc")
            .tooltip("What each alert means, how to see it, and what to do.")
            .url(f"/d/{RUNBOOKS_UID}")
        )
    )
    return assemble(board, {heading: panels() for heading, panels in ROWS.items()})
