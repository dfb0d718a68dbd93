"""Ends and removes everything of a lab, also after the lab was killed. Runs alone, as a script.

It makes the lab's folder, and a process group which all programs of the lab join. It prints both as a line of
JSON. Its stdin is a pipe from the lab. When the pipe ends, the lab has ended: the cleaner kills the group and
removes the folder.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PREFIX = "triojam-lab-"
# A killed process may still write for a moment.
REMOVE_SECONDS, PAUSE_SECONDS = 5.0, 0.05
STDIN, STDOUT = 0, 1


def main(parent: str) -> None:
    """Make a folder in `parent`, and wait for the end of stdin."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # only the end of the lab ends it
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as exc:
        _report({"error": exc.strerror})
        return
    # A process of its own leads the group, so that killing the group does not kill the cleaner.
    leader = os.fork()
    if leader == 0:
        _wait()
        os._exit(0)
    os.setpgid(leader, leader)
    with suppress(BrokenPipeError):  # the lab was killed during its start
        _report({"folder": str(folder), "group": leader})
    _wait()
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    deadline = time.monotonic() + REMOVE_SECONDS
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(PAUSE_SECONDS if folder.exists() else 0)


def _report(made: dict[str, Any]) -> None:
    os.write(STDOUT, json.dumps(made).encode() + b"\n")


def _wait() -> None:
    while os.read(STDIN, 4096):
        pass


if __name__ == "__main__":
    main(sys.argv[1])
