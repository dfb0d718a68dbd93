"""Telling seldom what may happen often. No clock: the time is passed in."""


class Seldom:
    """Says when an event is to be told, at most once in `seconds`, and how many there were since."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due = 0.0
        self._untold = 0

    def count(self, now: float) -> int:
        """Count an event that happens now; return how many are to be told, 0 for none."""
        self._untold += 1
        if now < self._due:
            return 0
        told, self._untold, self._due = self._untold, 0, now + self._seconds
        return told
