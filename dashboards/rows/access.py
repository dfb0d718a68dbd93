"""The rows about clients that may not connect, and about TLS."""

from grafana_foundation_sdk.models import units

from dashboards.panels import AnyPanel, lines, number
from dashboards.queries import CERTIFICATE_DAYS, HERE, MOST_LINES, hourly, labelled, rate
from dashboards.style import AMBER, CERTIFICATE_STEPS, DAYS, GREY, PER_SECOND, PURPLE, RED


def admission() -> list[AnyPanel]:
    """Make the panels about sources that the server limits or denies."""
    limited = labelled(reason="rate_limited")
    return [
        lines(
            "Refused sources",
            "Connections refused because of their source. per_source: one source has reached its own limit "
            "of connections (connections_per_source); denied: the settings allow and deny exclude the "
            "address.",
            {
                "{{reason}}": rate(
                    "triojam_connections_rejected_total", "reason", labelled(reason="per_source|denied")
                )
            },
            unit=PER_SECOND,
            color=RED,
            stacked=True,
        ),
        lines(
            "Requests over the rate of a source",
            "rate_limited: requests that were rejected, because their source sent more than it may.",
            {"rate_limited": rate("triojam_rejected_total", labels=limited)},
            unit=units.RequestsPerSecond,
            color=AMBER,
        ),
        lines(
            "Forgotten sources, in an hour",
            "Sources that the full table of sources forgot within the last hour. A forgotten source starts "
            "again with its full rate.",
            {"forgotten": hourly("triojam_client_table_evictions_total")},
            unit=units.Short,
            color=AMBER,
            width=8,
        ),
        lines(
            "Wrong passwords on the metrics port, in an hour",
            "missing: a request without a password, as a browser's first one; wrong: a wrong name or "
            "password; limited: not checked, because too many were wrong before.",
            {"{{reason}}": hourly("triojam_web_auth_failures_total", "reason")},
            unit=units.Short,
            color=AMBER,
            width=8,
        ),
        lines(
            "Turned away by the metrics port, in an hour",
            "busy: all places are taken; per_source: one source has its share of them; bad_request: not "
            "HTTP/1.1, or headers over the limit; body: a request with a body; timeout: a request or an "
            "answer took too long.",
            {"{{reason}}": hourly("triojam_web_rejected_total", "reason")},
            unit=units.Short,
            color=AMBER,
            width=8,
        ),
    ]


def tls() -> list[AnyPanel]:
    """Make the panels about TLS."""
    return [
        number(
            "Certificate ends in",
            "The days until the first certificate of the selected servers ends. Amber: within 14 days; red: "
            "within 3 days, or it has ended.",
            f"min({CERTIFICATE_DAYS})",
            unit=DAYS,
            decimals=1,
            steps=CERTIFICATE_STEPS,
            empty=("no TLS", GREY),
            width=6,
            height=8,
        ),
        lines(
            "Days until a certificate ends",
            "For each server and listener: time is the time port, metrics is the metrics port. Of more than "
            f"{MOST_LINES}, those that end first.",
            {f"{HERE} {{{{listener}}}}": f"bottomk({MOST_LINES}, {CERTIFICATE_DAYS})"},
            unit=DAYS,
            color=GREY,
            steps=CERTIFICATE_STEPS,
            least=None,
            width=9,
        ),
        lines(
            "Failed handshakes",
            "handshake: connections that ended because the TLS handshake failed: the client does not trust "
            "the certificate, speaks no TLS, or was too slow. All accepted connections for comparison.",
            {
                "failed": rate("triojam_disconnects_total", labels=labelled(reason="handshake")),
                "accepted": rate("triojam_connections_total"),
            },
            unit=PER_SECOND,
            color={"failed": RED, "accepted": PURPLE},
            width=9,
        ),
    ]
