"""Rules for Prometheus in a hurry: what takes minutes in earnest is to be seen by somebody who looks on."""

import re
from collections.abc import Iterable
from pathlib import Path

# A rate needs two scrapes in its window, and one may be late or lost.
SHORTEST_WINDOW = 4.0

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
_TIMES = re.compile(
    rf"(?P<window>(?<=\[){_DURATION}(?=[\]:]))"
    rf"|(?:(?<=\boffset )|(?<=\bfor: )|(?<=\bkeep_firing_for: )|(?<=\binterval: )){_DURATION}"
)


def hurried(text: str, speed: float) -> str:
    """Return a rule file whose windows and waiting times are so many times as short."""

    def shorten(match: re.Match[str]) -> str:
        seconds = seconds_of(match[0]) / speed
        if match["window"]:
            seconds = max(seconds, min(SHORTEST_WINDOW, seconds_of(match[0])))
        return f"{max(round(seconds * 1000), 1)}ms"

    return text if speed == 1 else _TIMES.sub(shorten, text)


def seconds_of(duration: str) -> float:
    """Return how long 1h30m, 5m or 100ms is."""
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwy])", duration))


def write_hurried(rules: Iterable[Path], folder: Path, speed: float) -> list[Path]:
    """Write rule files anew into a folder, hurried; return the new ones."""
    folder.mkdir()
    written = []
    for each in rules:
        file = folder / each.name
        file.write_text(hurried(each.read_text("utf-8"), speed), "utf-8")
        written.append(file)
    return written
