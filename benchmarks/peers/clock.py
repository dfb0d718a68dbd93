"""The answer, formatted once a second: every Python peer shares it, so none wins by its clock."""

import functools
import time

LONGEST_LINE = 512


@functools.lru_cache(maxsize=1)
def _answer_at(second: int) -> bytes:
    return time.strftime("JAM %H:%M:%S\r\n", time.localtime(second)).encode()


def answer() -> bytes:
    """Return the line that tells the current time."""
    return _answer_at(int(time.time()))


def is_request(line: bytes) -> bool:
    """Tell whether a whole line asks for the time."""
    return line.startswith(b"TIME") and line.endswith(b"\r\n") and len(line) <= LONGEST_LINE
