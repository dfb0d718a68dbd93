"""Expressions: the selected series, and what the rows make of them."""

# The series selected at the top of the page.
CHOSEN = '{job=~"$job", instance=~"$instance"}'
# An alert about a whole job has no instance, and is always shown.
ALERTS = 'ALERTS{alertstate="firing", alertname=~"Triojam.*", job=~"$job|", instance=~"$instance|"}'
# The recording rules about whole jobs have no instance.
JOBS = '{job=~"$job"}'
# The backend in ../deploy/haproxy/haproxy.cfg. HAProxy's series are in another job than triojam's.
BACKEND = '{proxy="triojam"}'
# At least two scrapes long at every zoom.
WINDOW = "$__rate_interval"
EACH = "by (job, instance)"
HERE = "{{instance}}"
# A line for each server of a large fleet cannot be read.
MOST_LINES = 10


def labelled(**labels: str) -> str:
    """Return the selection with more labels."""
    more = ", ".join(f'{name}=~"{values}"' for name, values in labels.items())
    return f"{{{more}, {CHOSEN[1:]}"


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


def hourly(metric: str, by: str = "", labels: str = CHOSEN) -> str:
    """Return the expression for the increase of a counter within the last hour."""
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(increase({metric}{labels}[1h]))"


def largest(expression: str) -> str:
    """Return the expression for the servers with the largest values."""
    return f"topk({MOST_LINES}, {expression})"


def to_the_end(expression: str) -> str:
    """Return the expression with NaN where it has no result.

    A graph ends at its last value. A number above a graph would show that value for ever.
    """
    return f"{expression} or vector(NaN)"


def failed(by: str = "") -> str:
    """Return the expression for the owed answers that were not delivered.

    As in the recording rules of ../prometheus/rules: the server owes no answer to a bad line, or to a client
    that has closed its connection.
    """
    return " + ".join(
        rate(metric, by, labelled(reason=reasons))
        for metric, reasons in (
            ("triojam_response_send_errors_total", "timeout|shutdown"),
            ("triojam_rejected_total", "draining"),
            ("triojam_connections_rejected_total", "busy"),
        )
    )


def served(by: str = "") -> str:
    """Return the expression for the share of the owed answers that were delivered."""
    responses = rate("triojam_responses_total", by)
    return ratio(responses, f"({responses} + {failed(by)})")


ANSWERED = ratio(rate("triojam_responses_total"), rate("triojam_requests_total"))
REFUSED_AS_BUSY = rate("triojam_connections_rejected_total", labels=labelled(reason="busy"))

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
# If Prometheus cannot scrape a server, the server has no series but `up`.
STATE_NOW = f"(triojam_ready{CHOSEN} + 2 * triojam_draining{CHOSEN}) or (up{CHOSEN} - 1)"
CERTIFICATE_DAYS = f"(triojam_tls_certificate_not_after_seconds{CHOSEN} - time()) / 86400"
