"""The row about the clock."""

from grafana_foundation_sdk.models import units

from dashboards.panels import AnyPanel, lines, number
from dashboards.queries import AHEAD, CHOSEN, HERE, MOST_LINES, hourly, largest
from dashboards.style import (
    AMBER,
    DELAY_STEPS,
    GREEN,
    GREY,
    LEAP,
    NOT_ABOVE_ZERO,
    OFFSET_STEPS,
    RED,
    SYNCHRONIZED,
)

UNKNOWN = ("unknown", GREY)  # the server cannot ask its kernel


def clock() -> list[AnyPanel]:
    """Make the panels about the clock."""
    return [
        number(
            "Clock",
            "Synchronized if the kernels of all selected servers say that their clocks are synchronized.",
            f"min(triojam_clock_synchronized{CHOSEN})",
            words=SYNCHRONIZED,
            steps=((None, RED), (1, GREEN)),
            empty=UNKNOWN,
            width=6,
        ),
        number(
            "Leap second",
            "The kernel's leap second state: the largest of the selected servers.",
            f"max(triojam_leap_state{CHOSEN})",
            words=LEAP,
            steps=((None, GREEN), (1, AMBER)),
            empty=UNKNOWN,
            width=6,
        ),
        number(
            "Largest possible error",
            "Largest possible error of the clock, as the kernel reports it: the maximum of the selected "
            "servers.",
            f"max(triojam_clock_max_error_seconds{CHOSEN})",
            unit=units.Seconds,
            steps=DELAY_STEPS,
            empty=UNKNOWN,
            width=6,
        ),
        number(
            "Clock steps in an hour",
            "How often a clock jumped by more than half a second within the last hour. Clients saw the jump.",
            hourly("triojam_clock_steps_total"),
            steps=NOT_ABOVE_ZERO,
            decimals=0,
            width=6,
        ),
        lines(
            "Offset from Prometheus's clock",
            "The served time less the time of the scrape on Prometheus's clock; above 0 the server is "
            "ahead. It includes the duration of the scrape, so a few milliseconds are normal. If one server "
            "differs, its clock is wrong. If all differ, check Prometheus's clock. Of more than "
            f"{2 * MOST_LINES} servers, those that are most ahead or behind.",
            {HERE: f"{largest(AHEAD)} or bottomk({MOST_LINES}, {AHEAD})"},
            unit=units.Seconds,
            color=GREY,
            steps=OFFSET_STEPS,
            least=None,
        ),
        lines(
            "Kernel clock: offset and largest error",
            "The correction that the kernel has not yet made, and the largest possible error of its clock. "
            f"The time daemon gives both to the kernel. Of more than {MOST_LINES} servers, those with the "
            "largest values.",
            {
                f"{HERE} offset": largest(f"abs(triojam_clock_offset_seconds{CHOSEN})"),
                f"{HERE} largest error": largest(f"triojam_clock_max_error_seconds{CHOSEN}"),
            },
            unit=units.Seconds,
            color=GREY,
        ),
    ]
