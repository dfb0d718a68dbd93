"""The clock of the answers."""

import time
from collections.abc import Callable
from datetime import datetime, tzinfo


class Clock:
    """Renders the wall clock in one time zone; renders once per second.

    zone: None = the system's. now: returns seconds since the epoch.
    """

    def __init__(self, *, zone: tzinfo | None = None, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self._second = -1
        self._jam = b""
        self._zone = zone

    def set_zone(self, zone: tzinfo | None) -> None:
        """Serve the time of another zone, or of the same one read anew."""
        self._zone = zone
        self._second = -1

    def jam(self) -> bytes:
        """Return the answer for this moment: `JAM hh:mm:ss` CR LF."""
        second = int(self.now())
        if second != self._second:
            local = datetime.fromtimestamp(second, self._zone)
            self._jam = local.strftime("JAM %H:%M:%S\r\n").encode("ascii")
            self._second = second
        return self._jam
