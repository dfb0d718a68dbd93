"""Limits how often a frequent event is reported. No clock: the time is passed in."""


class Seldom:
    """Decides when an event is reported: at most once in `seconds`, with the number of events since then."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due = 0.0
        self._unreported = 0

    def count(self, now: float) -> int:
        """Count an event that happens now; return how many to report, 0 for none."""
        self._unreported += 1
        if now < self._due:
            return 0
        count, self._unreported, self._due = self._unreported, 0, now + self._seconds
        return count
