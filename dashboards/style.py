"""Colours, thresholds, and words for values. One colour has one meaning, on the live page, too."""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard

GREEN = "#2E9E5B"  # good; responses
AMBER = "#D98E04"  # a warning; rejected requests
RED = "#D64045"  # wrong; send errors, refused connections
BLUE = "#2F7ED8"  # requests
PURPLE = "#8A5CC2"  # connections
GREY = "#7A8691"  # information; no data

# Thresholds and their colours. The first colour holds below all thresholds.
Steps = Sequence[tuple[float | None, str]]
# The text and the colour of a value.
Words = Mapping[int, tuple[str, str]] | Mapping[str, tuple[str, str]]

# Without prefixes: 0.04 with the unit `si:/s` is `40 m/s`.
PER_SECOND = "suffix:/s"
DAYS = "suffix:days"  # Grafana's own unit makes weeks of them

OBJECTIVE = 0.999  # share of the owed answers
RATIO_STEPS = ((None, RED), (0.99, AMBER), (OBJECTIVE, GREEN))
RATIO_DECIMALS = 3  # with fewer digits, 0.9996 would be 100 %
NONE_BUT_ZERO = ((None, RED), (0, GREEN), (0.000001, RED))
NOT_ABOVE_ZERO = ((None, GREEN), (0.000001, RED))
FULLNESS_STEPS = ((None, GREEN), (0.8, AMBER), (0.95, RED))
DELAY_STEPS = ((None, GREEN), (0.1, AMBER), (0.5, RED))
# Answers have whole seconds, so half a second is the least offset that a client can see.
OFFSET_STEPS = ((None, RED), (-0.5, AMBER), (-0.1, GREEN), (0.1, AMBER), (0.5, RED))
# The alerts on a certificate have the same limits.
CERTIFICATE_STEPS = ((None, RED), (3, AMBER), (14, GREEN))

STATE = {
    -1: ("down", RED),
    0: ("not ready", RED),
    1: ("ready", GREEN),
    2: ("draining", AMBER),
}
SYNCHRONIZED = {1: ("synchronized", GREEN), 0: ("NOT SYNCHRONIZED", RED)}
LEAP = {
    0: ("none", GREEN),
    1: ("will be inserted", AMBER),
    2: ("will be deleted", AMBER),
    3: ("in progress", AMBER),
    4: ("over", GREEN),
}


def thresholds(steps: Steps) -> builders.ThresholdsConfig:
    """Make thresholds."""
    return builders.ThresholdsConfig().steps([dashboard.Threshold(value, color) for value, color in steps])


def mappings(words: Words, empty: tuple[str, str] | None = None) -> list[dashboard.ValueMapping]:
    """Make words for values. empty: the text and the colour of NaN, and of no value."""
    results = {
        str(value): dashboard.ValueMappingResult(text=shown, color=color, index=index)
        for index, (value, (shown, color)) in enumerate(words.items())
    }
    made: list[dashboard.ValueMapping] = [dashboard.ValueMap(options=results)] if results else []
    if empty is not None:
        shown, color = empty
        result = dashboard.ValueMappingResult(text=shown, color=color, index=len(results))
        options = dashboard.DashboardSpecialValueMapOptions(
            match=dashboard.SpecialValueMatch.NULL_AND_NAN, result=result
        )
        made.append(dashboard.SpecialValueMap(options=options))
    return made


def fixed(color: str) -> builders.FieldColor:
    """Make one colour for all values."""
    return builders.FieldColor().mode(dashboard.FieldColorModeId.FIXED).fixed_color(color)


def shades(color: str) -> builders.FieldColor:
    """Make shades of a colour: the colour has the meaning, and a shade is a reason or a server."""
    return builders.FieldColor().mode(dashboard.FieldColorModeId.SHADES).fixed_color(color)
