"""The clock of the answers."""

import time
from collections.abc import Callable
from datetime import datetime
from zoneinfo import ZoneInfo

SYSTEM_ZONE = "system"


class Clock:
    """Renders the wall clock in one time zone; renders once per second.

    now: returns seconds since the epoch.
    """

    def __init__(self, *, zone: str = SYSTEM_ZONE, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self._second = -1
        self._jam = b""
        self._zone: ZoneInfo | None = None
        self.set_zone(zone)

    def set_zone(self, zone: str) -> None:
        """Serve the time of `zone`: an IANA name, or "system". Reads the zone's file again.

        Raises zoneinfo.ZoneInfoNotFoundError or ValueError for an unknown zone.
        """
        if zone == SYSTEM_ZONE:
            if hasattr(time, "tzset"):  # Windows has none
                time.tzset()
            self._zone = None
        else:
            self._zone = ZoneInfo.no_cache(zone)
        self._second = -1

    def jam(self) -> bytes:
        """Return the answer for this moment: `JAM hh:mm:ss` CR LF."""
        second = int(self.now())
        if second != self._second:
            local = datetime.fromtimestamp(second, self._zone)
            self._jam = local.strftime("JAM %H:%M:%S\r\n").encode("ascii")
            self._second = second
        return self._jam
