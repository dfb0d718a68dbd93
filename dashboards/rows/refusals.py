"""The row about clients that get no answer."""

from grafana_foundation_sdk.models import units

from dashboards.panels import AnyPanel, lines
from dashboards.queries import ANSWERED, CHOSEN, hourly, rate, served
from dashboards.style import AMBER, BLUE, GREEN, GREY, PER_SECOND, PURPLE, RATIO_DECIMALS, RATIO_STEPS, RED


def refusals() -> list[AnyPanel]:
    """Make the panels about which clients get no answer, and why."""
    return [
        lines(
            "Rejected requests, by reason",
            "bad_command: not TIME or QUIT; bad_terminator: LF without CR; too_long: line over the limit; "
            "timeout: the rest of the line did not come in time; incomplete: the connection ended within a "
            "line; rate_limited: too many requests from one source; draining: the server stops. All except "
            "draining are caused by the client.",
            {"{{reason}}": rate("triojam_rejected_total", "reason")},
            unit=units.RequestsPerSecond,
            color=AMBER,
            stacked=True,
            width=8,
        ),
        lines(
            "Send errors, by reason",
            "Answers that could not be delivered. timeout: the client did not read them; reset: the client "
            "closed the connection first; shutdown: the server stopped first.",
            {"{{reason}}": rate("triojam_response_send_errors_total", "reason")},
            unit=units.RequestsPerSecond,
            color=RED,
            stacked=True,
            width=8,
        ),
        lines(
            "Refused connections, by reason",
            "Connections refused before any request. busy: the server's limit of connections was reached; "
            "per_source: one source had reached its own limit; denied: the address may not connect; "
            "proxy_header: a connection from a proxy had no PROXY header, or a bad one.",
            {"{{reason}}": rate("triojam_connections_rejected_total", "reason")},
            unit=PER_SECOND,
            color=RED,
            stacked=True,
            width=8,
        ),
        lines(
            "Success ratio",
            "Delivered answers as a share of the owed answers, and of all requests. If only the second "
            "falls, clients send bad lines, or close the connection before the answer.",
            {"of owed answers": served(), "of all requests": ANSWERED},
            unit=units.PercentUnit,
            color={"of owed answers": GREEN, "of all requests": BLUE},
            steps=RATIO_STEPS,
            decimals=RATIO_DECIMALS,
            least=None,
            most=1,
            width=8,
        ),
        lines(
            "Closed connections, by reason",
            "eof, quit: the client ended the connection; idle: the client was silent for too long; drain: "
            "the server stops; handshake: the TLS handshake failed; line_timeout: the rest of a line did "
            "not come; send_timeout: the client did not read its answers; reset: the client broke the "
            "connection; too_long: a line over the limit; error_budget: too many bad lines; rejected: one "
            "rejection ends a connection of this server; internal_error: a bug.",
            {"{{reason}}": rate("triojam_disconnects_total", "reason")},
            unit=PER_SECOND,
            color=PURPLE,
            stacked=True,
            width=8,
        ),
        lines(
            "Internal events, in an hour",
            "Within the last hour. Internal errors: unexpected exceptions; each ended one connection, and "
            "each is a bug, whose traceback is in the log. success: a reload of the settings; failure: a "
            "reload that kept the old settings. Dropped log lines: the reader of the log is too slow. "
            "Self-check, timeout, connection, wrong_answer: the server did not answer its own request, and "
            "the watchdog was not fed.",
            {
                "internal errors": hourly("triojam_internal_errors_total"),
                "reload: {{result}}": hourly("triojam_config_reloads_total", "result"),
                "log lines dropped": hourly("triojam_log_messages_dropped_total"),
                "self-check: {{result}}": hourly(
                    "triojam_self_checks_total", "result", f'{CHOSEN[:-1]}, result!="success"}}'
                ),
            },
            unit=units.Short,
            color={
                "internal errors": RED,
                "reload: {{result}}": GREY,
                "log lines dropped": AMBER,
                "self-check: {{result}}": BLUE,
            },
            width=8,
        ),
    ]
