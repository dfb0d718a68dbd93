"""What a running lab is told to do: by its plan, its keyboard, and `triojam lab --inject` elsewhere."""

import errno
import json
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import trio

from triojam.errors import LabError
from triojam.lab.alerts import Alert
from triojam.lab.cleaner import PREFIX
from triojam.lab.faults import FAULTS, Fault, Target
from triojam.lab.pages import Links

MYSTERY, STOP = "mystery", "stop"
INDENT = " " * 10  # the width of a time and two spaces

KEYBOARD = 0
CONTROL = "control"
LONGEST_LINE = 200
LONGEST_REPLY = 4096
PATIENCE = 5.0
# How often a lab in the background looks whether it has the terminal again.
BACKGROUND_SECONDS = 1.0


class Reply(NamedTuple):
    """The answer to a word. done: whether the lab does it."""

    done: bool
    text: str


Obey = Callable[[str], Reply]


class Injector:
    """Causes faults on one of the targets, one at a time.

    say: prints lines, the first of them with the time. links: where to look.
    mysteries: chooses the faults that are not named.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        say: Callable[[str], None],
        links: Links,
        nursery: trio.Nursery,
        mysteries: random.Random,
    ) -> None:
        self._targets = targets
        self._say = say
        self._links = links
        self._mysteries = mysteries
        self._nursery = nursery
        self._scope: trio.CancelScope | None = None  # of the present fault
        self._shown = ""  # its name, as the user may know it
        self._over = trio.Event()
        self._fired: list[str] = []

    def note(self, alert: Alert) -> None:
        """Note an alert, which is told again at the end of a mystery."""
        if self._scope is not None:
            self._fired.append(str(alert))

    async def cause(self, name: str) -> None:
        """Cause a fault when no other one lasts, and return after it."""
        while not (reply := self.obey(name)).done and self._scope is not None:
            await self._over.wait()
        if reply.done:
            await self._over.wait()

    def obey(self, word: str) -> Reply:
        """Do what a word says."""
        words = [*FAULTS, MYSTERY, STOP, "list", "help"]
        match word.lower():
            case "help":
                text = f"Type one of {', '.join(words)}. Ctrl-C ends the lab."
            case "list":
                text = "\n".join(f"{name:12}  {each.description}" for name, each in FAULTS.items())
            case "stop" if self._scope is not None:
                self._scope.cancel()
                text = f"{self._shown} ends"
            case "stop":
                return Reply(done=False, text="no fault lasts now")
            case name if name not in words:
                return Reply(done=False, text=f"unknown word {word!r}: expected one of {', '.join(words)}")
            case _ if self._scope is not None:
                return Reply(done=False, text=f"{self._shown} still lasts; {STOP} ends it")
            case name:
                self._scope, self._shown, self._over = trio.CancelScope(), name, trio.Event()
                self._nursery.start_soon(self._last, name, self._scope)
                text = f"{name} begins"
        return Reply(done=True, text=text)

    async def _last(self, shown: str, scope: trio.CancelScope) -> None:
        name = self._mysteries.choice([*FAULTS]) if shown == MYSTERY else shown
        target = self._mysteries.choice(self._targets)
        fault, seconds = FAULTS[name], target.seconds
        self._fired.clear()
        if shown == MYSTERY:
            told = ["which fault is it? Its name comes at its end", f"{INDENT}see {self._links.first}"]
        else:
            told = [fault.description, *self._explain(fault, target)]
        self._say("\n".join([f"fault    {shown} for {seconds:g} s: {told[0]}", *told[1:]]))
        try:
            with scope:
                scope.deadline = trio.current_time() + seconds
                await fault.cause(target)
        finally:
            self._scope = None
            self._over.set()
            lines = [f"fault    {shown} is over"]
            if shown == MYSTERY:
                lines = [
                    f"fault    the {MYSTERY} was {name}: {fault.description}",
                    *self._explain(fault, target),
                ]
                meanwhile = self._fired or ["no alert fired or resolved"]
                lines += [
                    f"{INDENT}meanwhile: {meanwhile[0]}",
                    *(f"{INDENT}           {each}" for each in meanwhile[1:]),
                ]
            self._say("\n".join(lines))

    def _explain(self, fault: Fault, target: Target) -> list[str]:
        """Say what a fault hits, which alerts it can fire, or why it fires none, and where it shows."""
        servers = len(self._targets)
        alerts = ", ".join(fault.fires(servers))
        lines = [
            f"can fire {alerts}" if alerts else f"no alert fires for it: {fault.instead}",
            f"see {self._links.query(fault.query)}",
        ]
        if servers > 1:
            hit = f"{target.server.name} alone" if fault.of_one else "all servers, through HAProxy"
            lines = [f"it hits {hit}", *lines, f"HAProxy: {self._links.query(fault.at_haproxy)}"]
        return [f"{INDENT}{each}" for each in lines]


async def read_keyboard(obey: Obey, say: Callable[[str], None]) -> None:
    """Obey each line of stdin until it ends; it may be a terminal, a pipe, a file or nothing."""
    unread = b""
    while sys.stdin is not None:  # if it was closed at the start, another file has its descriptor now
        await trio.lowlevel.checkpoint()
        with suppress(OSError):  # a file or /dev/null cannot be waited for, and is always readable
            await trio.lowlevel.wait_readable(KEYBOARD)
        if not _may_read():
            await trio.sleep(BACKGROUND_SECONDS)
            continue
        try:
            data = os.read(KEYBOARD, LONGEST_LINE)
        except BlockingIOError:
            continue
        except OSError:  # closed, or its terminal has gone
            return
        if not data:
            return
        *lines, unread = (unread + data).split(b"\n")
        unread = unread[:LONGEST_LINE]
        for line in lines:
            if word := line.decode(errors="replace").strip():
                say(obey(word).text)


def is_keyboard() -> bool:
    """Whether stdin is a terminal."""
    return sys.stdin is not None and os.isatty(KEYBOARD)


def _may_read() -> bool:
    """Whether reading does not stop this process, as a terminal does with a process in the background."""
    try:
        return os.tcgetpgrp(KEYBOARD) == os.getpgrp()
    except OSError as exc:
        return exc.errno in (errno.ENOTTY, errno.EBADF, errno.EINVAL)  # no terminal


async def listen(
    folder: Path, obey: Obey, *, task_status: trio.TaskStatus[list[trio.SocketListener]]
) -> None:
    """Obey the words that come to a socket in a folder, until cancelled."""
    sock = trio.socket.socket(socket.AF_UNIX)
    with _short(folder) as short:
        await sock.bind(f"{short}/{CONTROL}")
    (folder / CONTROL).chmod(0o600)
    sock.listen()

    async def converse(stream: trio.SocketStream) -> None:
        with trio.move_on_after(PATIENCE), suppress(trio.BrokenResourceError):
            async with stream:
                line = b""
                while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    if not (data := await stream.receive_some(LONGEST_LINE)):
                        return
                    line += data
                reply = obey(line.decode(errors="replace").strip())
                await stream.send_all(json.dumps(reply).encode())

    await trio.serve_listeners(converse, [trio.SocketListener(sock)], task_status=task_status)


def send(word: str, parent: Path) -> str:
    """Send a word to this user's lab, and return its answer. parent: where labs have their folders.

    Raises LabError if there is not exactly one lab, or if it refuses.
    """
    labs = list(_connect_all(parent))
    try:
        if not labs:
            raise LabError(f"lab: no lab runs with its folder in {parent}; start one with triojam lab")
        if len(labs) > 1:
            raise LabError(f"lab: {len(labs)} labs run here; type the word in the lab's own terminal")
        labs[0].sendall(f"{word}\n".encode())
        received = b""
        while data := labs[0].recv(LONGEST_REPLY):
            received += data
        reply = Reply(*json.loads(received))
    except (OSError, ValueError):
        raise LabError("lab: the lab does not answer") from None
    finally:
        for each in labs:
            each.close()
    if not reply.done:
        raise LabError(f"lab: {reply.text}")
    return reply.text


def _connect_all(parent: Path) -> Iterator[socket.socket]:
    """Connect to each lab of this user."""
    for folder in parent.glob(f"{PREFIX}*"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            if folder.stat().st_uid != os.geteuid():
                raise PermissionError
            with _short(folder) as short:
                sock.connect(f"{short}/{CONTROL}")
        except OSError:  # no lab, or one that starts or ends
            sock.close()
        else:
            yield sock


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """Give a folder a short name: the path of a Unix socket has at most 107 bytes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        short = f"/proc/self/fd/{descriptor}"
        yield short if Path(short).exists() else str(folder)
    finally:
        os.close(descriptor)
