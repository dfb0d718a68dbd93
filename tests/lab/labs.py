"""A running lab to test: its lines are read, and everything that it started is watched."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import trio

from tests.helpers.program import COMMAND, launched
from tests.helpers.scrape import Address, Reply, fetch
from tests.helpers.servers import PATIENCE

# The lab starts three programs, which are slow on a busy machine.
LAB_PATIENCE = 3 * PATIENCE

# A program that is ready at once, and serves its environment.
QUIET = f"""#!{sys.executable}
import http.server, json, os, re, signal, subprocess, sys
words = " ".join(sys.argv)
port = os.environ.get("GF_SERVER_HTTP_PORT") or re.search(r"listen-address=127.0.0.1:([0-9]+)", words)[1]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())
server = http.server.HTTPServer(("127.0.0.1", int(port)), Handler)
# more
server.serve_forever()
"""
# The same, but it ignores SIGTERM, as does its child.
STUBBORN = QUIET.replace(
    "# more",
    'signal.signal(signal.SIGTERM, signal.SIG_IGN); subprocess.Popen(["sleep", "600"])',
)


class Lab:
    """A running lab. folder: where it makes its temporary directory. printed: the lines read so far."""

    def __init__(self, process: trio.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.printed: list[str] = []
        self._unread = b""

    async def says(self, pattern: str) -> re.Match[str]:
        """Return the next line that matches."""
        with trio.fail_after(LAB_PATIENCE):
            while (line := await self._line()) is not None:
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"no {pattern!r} in {self.printed} {await self.complaint()}")

    async def started(self) -> None:
        """Wait until all programs run."""
        await self.says("^Ctrl-C")

    def address(self, name: str) -> Address:
        """Return an address from the printed table."""
        (found,) = re.findall(rf"^{name}  .*?([\d.]+):(\d+)", "\n".join(self.printed), re.MULTILINE)
        return found[0], int(found[1])

    async def ends(self, signum: int | None = None) -> int:
        """Return the exit status, after sending a signal if one is given; no process or file may be left."""
        left = list(descendants(self.process.pid))
        if signum is not None:
            assert len(left) >= 5  # the cleaner, the leader of the group, and the three programs
            self.process.send_signal(signum)
        with trio.fail_after(LAB_PATIENCE):
            while await self._line() is not None:
                pass
            status = await self.process.wait()
            while any(map(lives, left)):  # noqa: ASYNC110  # init reaps the orphans
                await trio.sleep(0.01)
        assert is_empty(self.folder)
        return status

    async def complaint(self) -> str:
        """Return what the lab has written to stderr."""
        assert self.process.stderr is not None
        return b"".join([data async for data in self.process.stderr]).decode()

    async def _line(self) -> str | None:
        assert self.process.stdout is not None
        while b"\n" not in self._unread:
            data = await self.process.stdout.receive_some()
            if not data:
                return None
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        self.printed.append(line.decode())
        return self.printed[-1]


def descendants(pid: int) -> Iterator[int]:
    """Yield the children of a process, and their children."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            # proc(5): the name in parentheses may contain any character; the state and the parent follow.
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    found = list(children.get(pid, ()))
    for each in found:
        found += children.get(each, ())
        yield each


def lives(pid: int) -> bool:
    """Whether the process exists."""
    return Path(f"/proc/{pid}").exists()


def command_of(pid: int) -> str:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder."""
    return not any(folder.iterdir())


@asynccontextmanager
async def running(
    temporary: Path,
    *words: str,
    stdin: int = subprocess.DEVNULL,
    before: Sequence[str] = (),
    **variables: str,
) -> AsyncIterator[Lab]:
    """Run a lab. If it still runs at the end, it is killed, and its cleaner does the rest.

    before: words in front of the command, of a program that executes it.
    """
    environ = {"TMPDIR": str(temporary), **variables}
    command = [*before, *COMMAND, "lab", *words]
    async with launched(command, environ, stdin=stdin, stdout=subprocess.PIPE) as process:
        yield Lab(process, temporary)


async def get(url: str) -> Reply:
    """Ask for a URL that the lab has printed."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return await fetch((parts.hostname, parts.port), f"{parts.path}?{parts.query}")


def links(lines: Iterable[str]) -> list[str]:
    """Return the URLs in printed lines."""
    return re.findall(r"http://\S+", "\n".join(lines))


def fake(folder: Path, script: str, *names: str) -> None:
    """Put a program into a folder, under each of the names."""
    for name in names:
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
