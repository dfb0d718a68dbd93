"""A process that runs one command, and ends it with all its children when its own standard input ends.

It is a process of its own because the kernel gives it, as a subreaper (prctl(2)), each orphan of the command:
also a daemon in a session of its own. It ends them even if the judge was killed. It prints the exit status of
the command, if that ends first.

On systems without subreapers and /proc, only the command's process group is ended.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TERM_SECONDS = 1.0  # from SIGTERM to SIGKILL
LAST_SECONDS = 5.0  # until a process that may not be killed, such as one of sudo, is left alone
POLL_SECONDS = 0.02


def main(command: Sequence[str]) -> int:
    """Run the command until standard input ends."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    become_subreaper()
    process = subprocess.Popen(  # noqa: S603  # the operator's own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_default_signals,  # noqa: PLW1509  # this process has one thread
    )
    told = False
    while not select.select([sys.stdin.fileno()], [], [], POLL_SECONDS)[0]:
        reap(process)
        if process.returncode is not None and not told:
            told = True
            os.write(sys.stdout.fileno(), b"%d\n" % process.returncode)
    end_all(process)
    return 0


def become_subreaper() -> None:
    """Become the parent of all orphans among the descendants, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _default_signals() -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


def end_all(process: "subprocess.Popen[bytes]") -> None:
    """Ask all descendants to end; after a while kill them, until none is left."""
    began = time.monotonic()
    asked: set[int] = set()
    while remaining := descendants(os.getpid()) or _group_of(process):
        passed = time.monotonic() - began
        late = passed > TERM_SECONDS
        if passed > LAST_SECONDS:
            return
        for pid in remaining:
            if late or pid not in asked:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= remaining
        time.sleep(POLL_SECONDS)
        reap(process)


def reap(process: "subprocess.Popen[bytes]") -> None:
    """Take the exit status of the command and of all orphans that have ended."""
    process.poll()
    with suppress(ChildProcessError):
        while process.returncode is not None and os.waitpid(-1, os.WNOHANG)[0]:
            pass


def descendants(ancestor: int) -> set[int]:
    """Return the children of a process, their children, and so on."""
    parents = dict(_parents())
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {ancestor}


def _parents() -> "list[tuple[int, int]]":
    """Return each process with its parent, without those that have ended."""
    pairs = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # The name in brackets may have spaces and brackets (proc_pid_stat(5)).
            state, parent, *_ = entry.read_text("utf-8", "replace").rpartition(")")[2].split()
            if state not in "ZX":
                pairs.append((int(entry.parent.name), int(parent)))
    return pairs


def _group_of(process: "subprocess.Popen[bytes]") -> set[int]:
    """Return the command itself where there is no /proc."""
    return {process.pid} if process.poll() is None else set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
