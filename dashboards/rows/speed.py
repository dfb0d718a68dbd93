"""The row about speed."""

from grafana_foundation_sdk.models import dashboard, units

from dashboards.panels import AnyPanel, heat, lines
from dashboards.queries import CHOSEN, WINDOW, mean, quantile, rate
from dashboards.style import DELAY_STEPS, GREEN, GREY


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
            color=GREEN,
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
            color=GREY,
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
            color=GREY,
            steps=DELAY_STEPS,
        ),
    ]
