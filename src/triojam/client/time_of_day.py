"""Times of day, in seconds since midnight, and differences between them."""

from datetime import datetime, tzinfo

DAY = 86_400


def second_of_day(epoch: float, zone: tzinfo | None) -> float:
    """Return the seconds since midnight that a clock in `zone` shows, with their fraction."""
    shown = datetime.fromtimestamp(int(epoch // 1), zone)
    return shown.hour * 3600 + shown.minute * 60 + shown.second + epoch % 1


def fold(seconds: float) -> float:
    """Return the difference of two times of day, between -12 and +12 hours."""
    return (seconds + DAY / 2) % DAY - DAY / 2


def format_second(second: int) -> str:
    """Render a second of the day as hh:mm:ss."""
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
