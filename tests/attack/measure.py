"""One attack on one server, and its effect on the other clients."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.process import CLIENT_CORE, SERVER_CORE

from tests.helpers.program import COMMAND, FREE_PORTS, environment, memory, parse_address
from tests.helpers.servers import certificate_file, trusting
from tests.helpers.sockets import ask

ASK_EVERY, COME_EVERY, SCRAPE_EVERY = 0.005, 0.1, 1.0
WARM_UP = 2.0
PATIENCE = 30.0
GRACE = 2.0
WATCHDOG = 3.0


@dataclass
class Impact:
    """The measurements. Times are in seconds, memory is in MiB.

    waits, burned: for each request of the good client, its time and the CPU time of the server in it.
    newcomers: for each, the time to connect and to get an answer. feeds: of the watchdog.
    stopped: from the signal to the end of the process; status: its exit status.
    """

    waits: list[float] = field(default_factory=list)
    burned: list[float] = field(default_factory=list)
    newcomers: list[float] = field(default_factory=list)
    scrapes: int = 0
    feeds: int = 0
    failures: list[str] = field(default_factory=list)
    grown: float = 0.0
    stopped: float = 0.0
    status: int | None = None


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("inf")


class Server:
    """The attacked server, on its own core."""

    def __init__(self, process: subprocess.Popen[bytes], serving: dict[str, Any]) -> None:
        self.process = process
        self.pid = process.pid
        self.plain, self.tls, self.web = (
            parse_address(serving[name][0]) for name in ("addresses", "tls", "metrics")
        )

    def cpu(self) -> float:
        """Return the CPU time of its threads in seconds (proc(5), schedstat)."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):
                total += int((task / "schedstat").read_text("ascii").split()[0])
        return total / 1e9


@contextmanager
def _at_once() -> Iterator[None]:
    """Run before the attackers on their core, if the kernel allows it: only the server is measured."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def _serving(transport: str, notify: str) -> Iterator[Server]:
    command = [*COMMAND, *FREE_PORTS, "--tls-port", "0", "--tls-certificate", certificate_file()]
    command += ["--grace", f"{GRACE}", "--lame-duck", "0", "--line-timeout", "5"]
    command += [] if transport == "lane" else ["--no-fast-lane"]
    variables = environment(NOTIFY_SOCKET=notify, WATCHDOG_USEC=str(int(WATCHDOG * 1e6)))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=variables)
    try:
        os.sched_setaffinity(process.pid, {SERVER_CORE})
        assert process.stderr is not None
        for line in process.stderr:
            if (entry := json.loads(line))["event"] == "serving":
                break
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Server(process, entry)
    finally:
        process.kill()
        process.wait()


def measure(kind: str, transport: str, seconds: float) -> Impact:
    """Run one attack over one transport: `lane`, `portable` or `tls`."""
    impact = Impact()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify.bind(f"{folder}/notify")
        server = stack.enter_context(_serving(transport, f"{folder}/notify"))
        address = server.tls if transport == "tls" else server.plain
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {CLIENT_CORE})
        stack.callback(os.sched_setaffinity, 0, before)
        stack.enter_context(_at_once())
        context = trusting()

        def connect() -> socket.socket:
            sock = socket.create_connection(address, PATIENCE)
            return context.wrap_socket(sock, server_hostname="localhost") if transport == "tls" else sock

        good = stack.enter_context(connect())
        assert ask(good)
        at_rest = memory(server.pid)["Pss"]
        flags = ["--tls"] if transport == "tls" else []
        command = [sys.executable, "-m", "tests.attack.hostile", kind, *map(str, address), *flags]
        attack = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(attack.kill)
        assert attack.stdout is not None
        attack.stdout.readline()
        time.sleep(WARM_UP)
        over = threading.Event()
        jobs = [
            _every(COME_EVERY, over, impact, "newcomer", lambda: _come(connect, impact)),
            _every(SCRAPE_EVERY, over, impact, "scrape", lambda: _scrape(server, impact)),
            _every(0.0, over, impact, "watchdog", lambda: _listen(notify, impact)),
            _every(0.5, over, impact, "memory", lambda: _weigh(server, at_rest, impact)),
        ]
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            _ask_once(good, server, impact)
            time.sleep(ASK_EVERY)
        over.set()
        for job in jobs:
            job.join()
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            impact.status = server.process.wait(PATIENCE)
        impact.stopped = time.monotonic() - began
    return impact


def _every(
    pause: float, over: threading.Event, impact: Impact, name: str, job: Callable[[], object]
) -> threading.Thread:
    def run() -> None:
        while not over.wait(pause):
            try:
                job()
            except (OSError, http.client.HTTPException) as exc:
                impact.failures.append(f"{name}: {exc!r}")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _ask_once(good: socket.socket, server: Server, impact: Impact) -> None:
    burned, asked = server.cpu(), time.perf_counter()
    try:
        if not ask(good):
            impact.failures.append("good client: not the time")
    except OSError as exc:
        impact.failures.append(f"good client: {exc!r}")
        time.sleep(ASK_EVERY)
        return
    impact.waits.append(time.perf_counter() - asked)
    impact.burned.append(server.cpu() - burned)


def _come(connect: Callable[[], socket.socket], impact: Impact) -> None:
    began = time.perf_counter()
    with connect() as sock:
        if not ask(sock):
            impact.failures.append("newcomer: not the time")
    impact.newcomers.append(time.perf_counter() - began)


def _scrape(server: Server, impact: Impact) -> None:
    connection = http.client.HTTPConnection(*server.web, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    if connection.getresponse().status == http.HTTPStatus.OK:
        impact.scrapes += 1
    connection.close()


def _listen(notify: socket.socket, impact: Impact) -> None:
    notify.settimeout(0.2)
    with suppress(TimeoutError):
        impact.feeds += b"WATCHDOG=1" in notify.recv(4096)


def _weigh(server: Server, at_rest: int, impact: Impact) -> None:
    impact.grown = max(impact.grown, (memory(server.pid)["Pss"] - at_rest) / 1024)
