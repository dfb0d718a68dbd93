"""What all connections of one server share."""

from collections.abc import Callable
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from triojam.admission import Admission
from triojam.counters import Counters
from triojam.deadlines import Timeouts
from triojam.protocol import Rules


@dataclass(slots=True, kw_only=True)
class Service:
    """By what clients are admitted, served, counted and timed.

    rules, timeouts, log: may be replaced at any time; they are for the lines and waits that are not over yet.
    jam: renders the current time as a whole answer line.
    """

    rules: Rules
    timeouts: Timeouts
    counters: Counters
    admission: Admission
    jam: Callable[[], bytes]
    log: FilteringBoundLogger
