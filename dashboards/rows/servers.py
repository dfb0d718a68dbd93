"""The table of servers, on the dashboard of a fleet."""

from grafana_foundation_sdk.models import units

from dashboards.panels import AnyPanel
from dashboards.queries import (
    AHEAD,
    CERTIFICATE_DAYS,
    CHOSEN,
    EACH,
    FULLNESS,
    STATE_NOW,
    labelled,
    quantile,
    rate,
    served,
)
from dashboards.rows import UID
from dashboards.style import (
    CERTIFICATE_STEPS,
    DAYS,
    DELAY_STEPS,
    FULLNESS_STEPS,
    NOT_ABOVE_ZERO,
    OFFSET_STEPS,
    PER_SECOND,
    RATIO_DECIMALS,
    RATIO_STEPS,
    STATE,
)
from dashboards.tables import MOST_ROWS, Column, Style, rows_of

LABELS = "job, instance"
REFUSED = rate("triojam_connections_rejected_total", LABELS, labelled(reason="busy"))
OFFSET = f"sum {EACH} ({AHEAD})"
USED = f"sum {EACH} ({FULLNESS})"

UP = f"sum {EACH} (up{CHOSEN})"

# How much is wrong. A server that is down has no other series than
# `up`, and one that has just started has no rates.
TROUBLE = f"""16 * ({UP} == bool 0)
+ (8 * (sum {EACH} (triojam_ready{CHOSEN}) == bool 0) or 0 * {UP})
+ (4 * (abs({OFFSET}) > bool 0.5) or 0 * {UP})
+ (2 * ({REFUSED} > bool 0) or 0 * {UP})
+ ({USED} > bool 0.8 or 0 * {UP})"""


# Prometheus answers with these rows only, however many servers there are.
WORST = f"topk({MOST_ROWS}, {TROUBLE})"


def servers() -> list[AnyPanel]:
    """Make the panels about each server."""

    def column(name: str, expression: str, style: Style | None = None) -> Column:
        return Column(name, f"({expression}) and on (job, instance) {WORST}", style)

    def each(metric: str) -> str:
        return f"sum {EACH} ({metric}{CHOSEN})"

    left_out = ["Trouble", "Info"]
    info = f"{LABELS}, version, python"
    here = "var-job=${__data.fields.job:percentencode}&var-instance=${__data.fields.instance:percentencode}"
    url = f"/d/{UID}?${{datasource:queryparam}}&{here}&${{__url_time_range}}"
    columns = [
        Column("Trouble", WORST),
        column("State", f"sum {EACH} ({STATE_NOW})", Style(words=STATE)),
        column("Info", f"sum by ({info}) (triojam_build_info{CHOSEN})"),
        column("Uptime", f"time() - {each('process_start_time_seconds')}", Style(unit=units.DurationSeconds)),
        column("Requests", rate("triojam_requests_total", LABELS), Style(unit=units.RequestsPerSecond)),
        column(
            "Success",
            served(LABELS),
            Style(unit=units.PercentUnit, decimals=RATIO_DECIMALS, steps=RATIO_STEPS),
        ),
        column(
            "Time to answer, 99 %",
            quantile(0.99, "triojam_request_duration_seconds", f"{LABELS}, le"),
            Style(unit=units.Seconds, steps=DELAY_STEPS),
        ),
        column("Connections", each("triojam_connections_open")),
        column("Limit in use", USED, Style(unit=units.PercentUnit, decimals=1, steps=FULLNESS_STEPS)),
        column("Refused", REFUSED, Style(unit=PER_SECOND, steps=NOT_ABOVE_ZERO)),
        column("Clock offset", OFFSET, Style(unit=units.Seconds, steps=OFFSET_STEPS)),
        column(
            "Certificate",
            f"min {EACH} ({CERTIFICATE_DAYS})",
            Style(unit=DAYS, decimals=1, steps=CERTIFICATE_STEPS),
        ),
    ]
    return [
        rows_of(
            "Each server",
            "A row for each server, with its values now, the worst first: down; not ready; a clock that is "
            f"wrong by more than half a second; refused as busy; nearly full. The first {MOST_ROWS} rows "
            "are shown. A click on a server offers its row of the overview, and its live page if Prometheus "
            "knows the server by its address. The clock offset is the difference from Prometheus's clock. "
            "Certificate: the days until a certificate of the server ends; empty without TLS.",
            columns,
            {
                "instance": Style(
                    links={
                        "Show this server alone": url,
                        "Live page": "http://${__data.fields.instance}/",
                    }
                ),
            },
            order=[
                "instance",
                "job",
                *(each.name for each in columns if each.name not in left_out),
                "version",
                "python",
            ],
            first="Trouble",
            left_out=left_out,
            empty="-",
            height=12,
        )
    ]
