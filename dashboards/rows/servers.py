"""The row with the table of servers."""

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

# How much is wrong. A server that is down has no other series, so the first part has its own number.
TROUBLE = f"""16 * (sum {EACH} (up{CHOSEN}) == bool 0) > 0 or
8 * (sum {EACH} (triojam_ready{CHOSEN}) == bool 0)
+ 4 * (abs({OFFSET}) > bool 0.5)
+ 2 * ({REFUSED} > bool 0)
+ ({USED} > bool 0.8)"""


def servers() -> list[AnyPanel]:
    """Make the panels about each server."""

    def each(metric: str) -> str:
        return f"sum {EACH} ({metric}{CHOSEN})"

    left_out = ["Trouble", "Info"]
    info = f"{LABELS}, version, python"
    here = "var-job=${__data.fields.job:percentencode}&var-instance=${__data.fields.instance:percentencode}"
    url = f"/d/{UID}?${{datasource:queryparam}}&{here}&${{__url_time_range}}"
    columns = [
        Column("Trouble", TROUBLE),
        Column("State", f"sum {EACH} ({STATE_NOW})", Style(words=STATE)),
        Column("Info", f"sum by ({info}) (triojam_build_info{CHOSEN})"),
        Column("Uptime", f"time() - {each('process_start_time_seconds')}", Style(unit=units.DurationSeconds)),
        Column("Requests", rate("triojam_requests_total", LABELS), Style(unit=units.RequestsPerSecond)),
        Column(
            "Success",
            served(LABELS),
            Style(unit=units.PercentUnit, decimals=RATIO_DECIMALS, steps=RATIO_STEPS),
        ),
        Column(
            "Time to answer, 99 %",
            quantile(0.99, "triojam_request_duration_seconds", f"{LABELS}, le"),
            Style(unit=units.Seconds, steps=DELAY_STEPS),
        ),
        Column("Connections", each("triojam_connections_open")),
        Column("Limit in use", USED, Style(unit=units.PercentUnit, decimals=1, steps=FULLNESS_STEPS)),
        Column("Refused", REFUSED, Style(unit=PER_SECOND, steps=NOT_ABOVE_ZERO)),
        Column("Clock offset", OFFSET, Style(unit=units.Seconds, steps=OFFSET_STEPS)),
        Column(
            "Certificate",
            f"min {EACH} ({CERTIFICATE_DAYS})",
            Style(unit=DAYS, decimals=1, steps=CERTIFICATE_STEPS),
        ),
    ]
    return [
        rows_of(
            "Servers",
            "A row for each server, with its values now, the worst first: down; not ready; a clock that is "
            f"wrong by more than half a second; refused as busy; nearly full. The first {MOST_ROWS} rows "
            "are shown. A click on a server shows it alone. The clock offset is the difference from "
            "Prometheus's clock. Certificate: the days until a certificate of the server ends; empty "
            "without TLS.",
            columns,
            {
                "instance": Style(link=("Show this server alone", url)),
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
