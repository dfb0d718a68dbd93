"""The overview dashboard: a row for each question of an operator, the most important first."""

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

# The series selected at the top of the page.
CHOSEN = '{job=~"$job", instance=~"$instance"}'
# An alert about a whole job has no instance, and is always shown.
ALERTS = 'ALERTS{alertstate="firing", alertname=~"Triojam.*", job=~"$job|", instance=~"$instance|"}'
# At least two scrapes long at every zoom.
WINDOW = "$__rate_interval"
EACH = "by (job, instance)"
HERE = "{{instance}}"

OBJECTIVE = 0.999  # share of the owed answers
RATIO_STEPS = ((None, RED), (0.99, ORANGE), (OBJECTIVE, GREEN))
NONE_BUT_ZERO = ((None, RED), (0, GREEN), (0.000001, RED))
FULLNESS_STEPS = ((None, GREEN), (0.8, ORANGE), (0.95, RED))
LAG_STEPS = ((None, GREEN), (0.1, ORANGE), (0.5, RED))
# Answers have whole seconds, so half a second is the least offset that a client can see.
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
    1: ("will be inserted", ORANGE),
    2: ("will be deleted", ORANGE),
    3: ("in progress", ORANGE),
    4: ("over", GREEN),
}


def rate(metric: str, by: str = "", labels: str = CHOSEN) -> str:
    """Return the expression for the rate of a counter: the total, or by a label."""
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate({metric}{labels}[{WINDOW}]))"


def ratio(part: str, whole: str) -> str:
    """Return the expression for a share; it has no result, instead of NaN, where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def quantile(share: float, metric: str, by: str = "le") -> str:
    """Return the expression for a quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', by)})"


def mean(metric: str) -> str:
    """Return the expression for the mean of a histogram."""
    return ratio(rate(f"{metric}_sum"), rate(f"{metric}_count"))


def hourly(metric: str) -> str:
    """Return the expression for the increase of a counter within the last hour."""
    return f"sum(increase({metric}{CHOSEN}[1h]))"


# Owed answers that were not delivered, as in the recording rules of ../prometheus/rules. The server owes no
# answer to a bad line, or to a client that has closed its connection.
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

# The minimum of a minute: a request in flight is there at one scrape only, a lost one at every scrape. The
# explicit step replaces Prometheus's evaluation interval, which may be longer than that minute.
UNACCOUNTED = f"""min_over_time((
  sum(triojam_requests_total{CHOSEN})
  - sum(triojam_responses_total{CHOSEN})
  - sum(triojam_rejected_total{CHOSEN})
  - sum(triojam_response_send_errors_total{CHOSEN})
)[1m:5s])"""

FULLNESS = f"triojam_connections_open{CHOSEN} / (triojam_connections_limit{CHOSEN} > 0)"
AHEAD = f"triojam_clock_seconds{CHOSEN} - timestamp(triojam_clock_seconds{CHOSEN})"


def working() -> list[AnyPanel]:
    """Make the panels about whether it works."""
    return [
        number(
            "Up",
            "Up if Prometheus reaches all selected servers; down if it does not reach one of them.",
            f"min(up{CHOSEN})",
            words=UP,
            steps=((None, RED), (1, GREEN)),
        ),
        number(
            "Ready",
            "Ready if all selected servers accept new clients. A server does not while it starts, and after "
            "the stop signal.",
            f"min(triojam_ready{CHOSEN})",
            words=READY,
            steps=((None, RED), (1, GREEN)),
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
        number(
            "Success ratio",
            "Share of the owed answers that were delivered; the objective is 99.9 %. Failures are: answers "
            "that a client did not read, requests rejected by a draining server, and connections refused as "
            "busy. Bad lines, and clients that closed the connection first, are no failures.",
            SERVED,
            unit=units.PercentUnit,
            steps=RATIO_STEPS,
            decimals=3,
            empty="no requests",
        ),
        number(
            "Internal errors in an hour",
            "Unexpected exceptions within the last hour; each ended one connection. Each is a bug; the log "
            "has the traceback.",
            hourly("triojam_internal_errors_total"),
            steps=((None, GREEN), (0.000001, RED)),
            decimals=0,
        ),
        number(
            "Alerts firing",
            "Number of firing alerts about triojam, without those of severity info, which only explain "
            "others. The red marks on the graphs and Prometheus's page of alerts show which ones. The link "
            "Runbooks at the top shows what to do.",
            f'count({ALERTS[:-1]}, severity!="info"}}) or vector(0)',
            steps=((None, GREEN), (1, RED)),
        ),
        lines(
            "Requests and their results",
            "Each request ends as a response, as a rejection or as a send error, so the first line is the "
            "sum of the others.",
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
            "Delivered answers as a share of the owed answers, and of all requests. If only the second "
            "falls, clients send bad lines, or close the connection before the answer.",
            {"of owed answers": SERVED, "of all requests": ANSWERED},
            unit=units.PercentUnit,
            steps=RATIO_STEPS,
            least=None,
            most=1,
        ),
        states(
            "State of each server",
            "Ready; not ready: it starts; draining: from the stop signal until the end; down: Prometheus "
            "did not reach it.",
            f"(triojam_ready{CHOSEN} + 2 * triojam_draining{CHOSEN}) or (up{CHOSEN} - 1)",
            HERE,
            STATE,
        ),
    ]


def refusals() -> list[AnyPanel]:
    """Make the panels about which clients get no answer, and why."""
    return [
        lines(
            "Rejected requests, by reason",
            "bad_command: not TIME or QUIT; bad_terminator: LF without CR; too_long: line over the limit; "
            "timeout: the rest of the line did not come in time; incomplete: the connection ended within a "
            "line; rate_limited: too many requests; draining: the server stops. All except draining are "
            "caused by the client.",
            {"{{reason}}": rate("triojam_rejected_total", "reason")},
            unit=units.RequestsPerSecond,
            stacked=True,
            width=8,
        ),
        lines(
            "Send errors, by reason",
            "Answers that could not be delivered. timeout: the client did not read them; reset: the client "
            "closed the connection first; shutdown: the server stopped first.",
            {"{{reason}}": rate("triojam_response_send_errors_total", "reason")},
            unit=units.RequestsPerSecond,
            stacked=True,
            width=8,
        ),
        lines(
            "Refused connections, by reason",
            "Connections refused before any request. busy: the limit was reached; per_source: the limit of "
            "one source was reached; denied: the address may not connect.",
            {"{{reason}}": rate("triojam_connections_rejected_total", "reason")},
            unit=units.CountsPerSecond,
            stacked=True,
            width=8,
        ),
        lines(
            "Closed connections, by reason",
            "The client ends with eof and quit, the server with idle and drain. internal_error is a bug. "
            "All other reasons are a faulty client or a broken connection.",
            {"{{reason}}": rate("triojam_disconnects_total", "reason")},
            unit=units.CountsPerSecond,
            stacked=True,
        ),
        lines(
            "Internal events, in an hour",
            "Within the last hour: internal errors; reloads of the settings, by result; dropped log lines; "
            "sources that the full table of sources forgot; requests to the metrics listener with a wrong "
            "password, or refused after too many wrong ones (limited); connections and requests that the "
            "metrics port turned away.",
            {
                "internal errors": hourly("triojam_internal_errors_total"),
                "reload: {{result}}": f"sum by (result) (increase(triojam_config_reloads_total{CHOSEN}[1h]))",
                "log lines dropped": hourly("triojam_log_messages_dropped_total"),
                "sources forgotten": hourly("triojam_client_table_evictions_total"),
                "web password: {{reason}}": "sum by (reason) (increase("
                f'triojam_web_auth_failures_total{{reason=~"wrong|limited", {CHOSEN[1:]}[1h]))',
                "web port: {{reason}}": f"sum by (reason) (increase(triojam_web_rejected_total{CHOSEN}[1h]))",
            },
            unit=units.Short,
        ),
    ]


def speed() -> list[AnyPanel]:
    """Make the panels about speed."""
    duration = "triojam_request_duration_seconds"
    receive = "triojam_request_receive_seconds"
    lag = "triojam_event_loop_lag_seconds"
    return [
        heat(
            "Time to answer: distribution",
            "From the complete line to its answer in the kernel, without the network. A darker cell has "
            "more answers.",
            f"sum by (le) (increase({duration}_bucket{CHOSEN}[{WINDOW}]))",
        ),
        lines(
            "Time to answer: quantiles",
            "The share of answers in the legend took at most this time. Prometheus interpolates within a "
            "bucket, so values below 50 µs are estimates.",
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
            "From the first byte of a line to its LF, for lines that came in pieces. High values are slow "
            "clients or a slow network, not a slow server. Empty while all lines come in one piece.",
            {
                "50 %": quantile(0.5, receive),
                "99 %": quantile(0.99, receive),
                "mean": mean(receive),
                "lines in pieces per second": rate(f"{receive}_count"),
            },
            unit=units.Seconds,
        ).override_by_name(
            "lines in pieces per second",
            [
                dashboard.DynamicConfigValue(id_val="unit", value=units.CountsPerSecond),
                dashboard.DynamicConfigValue(id_val="custom.axisPlacement", value="right"),
            ],
        ),
        lines(
            "Event loop lag",
            "How late a probe woke up that sleeps four times a second. All clients share one loop. If the "
            "lag rises, the process gets too little CPU time, or something blocks the loop.",
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
    """Make the panels about capacity."""
    return [
        lines(
            "Connections and their limit",
            "Open connections and their limit, as the sum of all selected servers.",
            {
                "open": f"sum(triojam_connections_open{CHOSEN})",
                "limit": f"sum(triojam_connections_limit{CHOSEN})",
            },
            unit=units.Short,
            width=8,
        ),
        lines(
            "Share of the limit in use",
            "Open connections as a share of the limit, for each server. At 100 %, new clients are refused.",
            {HERE: FULLNESS},
            unit=units.PercentUnit,
            steps=FULLNESS_STEPS,
            most=1,
            width=8,
        ),
        lines(
            "New connections",
            "Accepted connections, including refused ones. A client that connects for each request costs "
            "much more than a client that keeps its connection.",
            {"accepted": rate("triojam_connections_total")},
            unit=units.CountsPerSecond,
            width=8,
        ),
        lines(
            "Fast lane hand-overs, by cause",
            "Clients that the fast lane handed over to their own task. line: a bad line or QUIT; send: the "
            "answers did not fit into the kernel's buffer; timeout, eof: an incomplete line. Many hand- "
            "overs make the server slower.",
            {"{{cause}}": rate("triojam_lane_handovers_total", "cause")},
            unit=units.CountsPerSecond,
            stacked=True,
        ),
        lines(
            "Failed accepts, by errno",
            "EMFILE: the process has no file descriptors left; ENFILE: the machine has none left. "
            "ECONNABORTED: the client closed the connection before the accept.",
            {"{{errno}}": rate("triojam_accept_errors_total", "errno")},
            unit=units.CountsPerSecond,
            stacked=True,
        ),
    ]


def clock() -> list[AnyPanel]:
    """Make the panels about the clock."""
    return [
        number(
            "Clock",
            "Synchronized if the kernels of all selected servers say that their clocks are synchronized.",
            f"min(triojam_clock_synchronized{CHOSEN})",
            words=SYNCHRONIZED,
            steps=((None, RED), (1, GREEN)),
            width=6,
        ),
        number(
            "Leap second",
            "The kernel's leap second state: the largest of the selected servers.",
            f"max(triojam_leap_state{CHOSEN})",
            words=LEAP,
            steps=((None, GREEN), (1, ORANGE)),
            width=6,
        ),
        number(
            "Largest possible error",
            "Largest possible error of the clock, as the kernel reports it: the maximum of the selected "
            "servers.",
            f"max(triojam_clock_max_error_seconds{CHOSEN})",
            unit=units.Seconds,
            steps=((None, GREEN), (0.1, ORANGE), (0.5, RED)),
            width=6,
        ),
        number(
            "Clock steps in an hour",
            "How often a clock jumped by more than half a second within the last hour. Clients saw the jump.",
            hourly("triojam_clock_steps_total"),
            steps=((None, GREEN), (0.000001, RED)),
            decimals=0,
            width=6,
        ),
        lines(
            "Offset from Prometheus's clock",
            "The served time less the time of the scrape on Prometheus's clock; above 0 the server is "
            "ahead. It includes the duration of the scrape, so a few milliseconds are normal. If one server "
            "differs, its clock is wrong. If all differ, check Prometheus's clock.",
            {HERE: AHEAD},
            unit=units.Seconds,
            steps=OFFSET_STEPS,
            least=None,
        ),
        lines(
            "Kernel clock: offset and largest error",
            "The correction that the kernel has not yet made, and the largest possible error of its clock. "
            "The time daemon gives both to the kernel.",
            {
                f"{HERE} offset": f"triojam_clock_offset_seconds{CHOSEN}",
                f"{HERE} largest error": f"triojam_clock_max_error_seconds{CHOSEN}",
            },
            unit=units.Seconds,
            least=None,
        ),
    ]


def cost() -> list[AnyPanel]:
    """Make the panels about resource use."""
    cpu = "process_cpu_seconds_total"
    return [
        lines(
            "CPU",
            "CPU use of each process. A server has one event loop, so 100 % is its maximum.",
            {HERE: f"rate({cpu}{CHOSEN}[{WINDOW}])"},
            unit=units.PercentUnit,
            steps=FULLNESS_STEPS,
            width=8,
        ),
        lines(
            "Memory",
            "Resident memory of each process.",
            {HERE: f"process_resident_memory_bytes{CHOSEN}"},
            unit=units.BytesIEC,
            width=8,
        ),
        lines(
            "File descriptors",
            "Open file descriptors of each process, and their limit. Every connection uses one.",
            {
                f"{HERE} open": f"process_open_fds{CHOSEN}",
                f"{HERE} limit": f"process_max_fds{CHOSEN}",
            },
            unit=units.Short,
            width=8,
        ),
        lines(
            "CPU time per request",
            "CPU time of all selected processes, divided by their requests. With few requests, most of it "
            "is the base load of the process.",
            {"per request": ratio(rate(cpu), rate("triojam_requests_total"))},
            unit=units.Seconds,
            width=8,
        ),
        lines(
            "Garbage collections, by generation",
            "Runs of Python's garbage collector. Runs of the last generation are slow and should be rare.",
            {"generation {{generation}}": rate("python_gc_collections_total", "generation")},
            unit=units.CountsPerSecond,
            width=8,
        ),
        lines(
            "Garbage",
            "Objects found by Python's garbage collector. collected: they were part of a cycle; "
            "uncollectable: a leak.",
            {
                "collected": rate("python_gc_objects_collected_total"),
                "uncollectable": rate("python_gc_objects_uncollectable_total"),
            },
            unit=units.CountsPerSecond,
            width=8,
        ),
    ]


def instances() -> list[AnyPanel]:
    """Make the panels about each server."""
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
        Column("p99", quantile(0.99, duration, "job, instance, le"), unit=units.Seconds),
        Column("Connections", each("triojam_connections_open")),
        Column(
            "Limit in use",
            f"sum {EACH} ({FULLNESS})",
            unit=units.PercentUnit,
            steps=FULLNESS_STEPS,
        ),
        Column("Clock offset", f"sum {EACH} ({AHEAD})", unit=units.Seconds, steps=OFFSET_STEPS),
        Column("CPU", each_rate("process_cpu_seconds_total"), unit=units.PercentUnit),
        Column("Memory", each("process_resident_memory_bytes"), unit=units.BytesIEC),
    ]
    return [
        rows_of_instances(
            "Servers",
            "A row for each server, with its values now: a server that differs from the others is easy to "
            "see. The clock offset is the difference from Prometheus's clock.",
            columns,
            labels=["job", "instance", "version", "python", "trio"],
            hidden=["Info"],
        )
    ]


ROWS = {
    "Does it work?": working,
    "Which clients get no answer, and why?": refusals,
    "How fast is it?": speed,
    "How full is it?": fullness,
    "Is the clock right?": clock,
    "What does it cost?": cost,
    "Which server is it?": instances,
}


def variable(name: str, label: str, query: str) -> builders.QueryVariable:
    """Make a selection at the top of the page: all, one, or several values of a label."""
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
    """Make marks on all graphs, at the times when the expression has a result."""
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
        .description("The state of the time server: a row for each question of an operator.")
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
            .tooltip("What each alert means, how to check it, and what to do.")
            .url(f"/d/{RUNBOOKS_UID}")
        )
    )
    return assemble(board, {heading: panels() for heading, panels in ROWS.items()})
