"""The answer, formatted once per second. All Python peers use it, so it does not affect the comparison."""

import functools
import time

LONGEST_LINE = 512


@functools.lru_cache(maxsize=1)
def _answer_at(second: int) -> bytes:
    return time.strftime("JAM %H:%M:%S\r\n", time.localtime(second)).encode()


def answer() -> bytes:
    """Return the line with the current time."""
    return _answer_at(int(time.time()))


def is_request(line: bytes) -> bool:
    """Return whether a complete line is a request for the time."""
    return line.startswith(b"TIME") and line.endswith(b"\r\n") and len(line) <= LONGEST_LINE
