"""Reading a file that a setting names: once, within limits, and never from something that waits."""

import os
import stat

# Larger files are refused: a mistake, or /dev/zero.
LONGEST_FILE = 1024 * 1024


def read_bounded(path: str, *, any_kind: bool = False) -> bytes:
    """Read a regular file of at most LONGEST_FILE bytes, once. Raises OSError, or ValueError with the reason.

    any_kind: also read a pipe or a device, and wait for it.
    """
    # Opening a FIFO would wait for a writer.
    more = 0 if any_kind else getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | more)) as file:  # an opener
        if not (any_kind or stat.S_ISREG(os.fstat(file.fileno()).st_mode)):
            raise ValueError("not a regular file")
        content = file.read(LONGEST_FILE + 1)
    if len(content) > LONGEST_FILE:
        raise ValueError(f"longer than {LONGEST_FILE} bytes")
    return content
