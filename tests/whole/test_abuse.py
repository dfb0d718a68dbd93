"""Other processes attack a whole server process. A good client beside them hardly notices it."""

import errno
import json
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path

import pytest
import trio

from tests.helpers.crowds import CROWD
from tests.helpers.invariants import good_client
from tests.helpers.program import UNMEASURED, Program, environment, memory, serving
from tests.helpers.requirements import cannot_run
from tests.helpers.servers import PATIENCE, receive_all, receive_exactly
from tests.helpers.sockets import JAM_BYTES, reset_on_close
from tests.web.test_http_connection import H2_PREFACE
from triojam.web.http_server import MOST_A_SOURCE, MOST_CONNECTIONS

pytestmark = pytest.mark.xdist_group("crowds")

PAUSE = 0.005  # between the requests of a good client
MEGABYTE = 1000  # in kB
SPARE_DESCRIPTORS = 128  # for the log, the listeners and the libraries
TICKS = 100  # of CPU time in a second, in the files of proc(5)

PORTABLE, LANE = ("--no-fast-lane",), ("--fast-lane",)
attacked = partial(serving, **UNMEASURED)
paths = pytest.mark.parametrize("path", [PORTABLE, LANE], ids=["tcp", "lane"])


async def run_crowd(kind: str, program: Program) -> dict[str, float]:
    """Run a crowd of clients to its end, and return its result."""
    command = [sys.executable, "-m", "tests.helpers.crowds", kind, *map(str, program.address)]
    done = await trio.run_process(command, capture_stdout=True, env=environment(**UNMEASURED))
    result: dict[str, float] = json.loads(done.stdout)
    return result


def peak_memory(program: Program) -> int:
    """Return the peak memory of the process in kB (proc(5), VmHWM)."""
    status = Path(f"/proc/{program.process.pid}/status").read_text("ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def cpu_seconds(program: Program) -> float:
    """Return the CPU time of the process so far (proc(5), utime and stime)."""
    fields = Path(f"/proc/{program.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@pytest.fixture
def many_descriptors() -> None:
    """Skip the test on a machine with too few file descriptors for a crowd."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CROWD + SPARE_DESCRIPTORS:
        cannot_run(f"needs {CROWD + SPARE_DESCRIPTORS} file descriptors, and the hard limit is {hard}")


async def test_idle_connections_are_each_answered_twice(many_descriptors: None) -> None:
    """10,000 connections are open at once. Each gets two answers, the second after a pause."""
    async with attacked("--idle-timeout", "0", "--max-connections", "0") as program:
        assert await run_crowd("idle", program) == {"first": CROWD, "second": CROWD}


@paths
async def test_memory_stays_flat(path: Sequence[str]) -> None:
    """A million unread requests, a gigabyte without LF, and 10,000 resets each cost no memory."""
    async with attacked("--send-timeout", "0.3", *path) as program:
        async with good_client(program.connect, pause=PAUSE):
            await program.scrape()
            before = peak_memory(program)
            unread = await run_crowd("never_reading", program)
            endless = await run_crowd("endless_line", program)
            await run_crowd("resets", program)
            assert peak_memory(program) - before < 5 * MEGABYTE
        seen = await program.scrape()
    assert unread["sent"] < 6_000_000
    assert endless["sent"] < 100_000_000
    for reason, times in {"send_timeout": 1, "too_long": 1, "reset": CROWD}.items():
        assert seen.total("triojam_disconnects_total", reason=reason) == times
    assert seen.total("triojam_response_send_errors_total", reason="timeout") > 0
    assert seen.total("triojam_log_messages_dropped_total") == 0


# The portable path wakes a task for each of 10,000 bytes a second. It can do no more.
@pytest.mark.parametrize(("path", "prompt"), [(PORTABLE, 0.5), (LANE, 0.1)], ids=["tcp", "lane"])
async def test_slowloris_clients_are_each_closed_in_time(
    path: Sequence[str], prompt: float, many_descriptors: None
) -> None:
    """Each of 10,000 clients gets the error line and is closed at its timeout; good answers stay fast."""
    async with attacked("--line-timeout", "2", "--max-connections", "0", *path) as program:
        async with good_client(program.connect, pause=PAUSE, prompt=PATIENCE) as waits:
            crowd = await run_crowd("slowloris", program)
        seen = await program.scrape()
    assert (crowd["at_once"], crowd["told"]) == (CROWD, CROWD)
    assert crowd["shortest"] >= 2
    assert seen.total("triojam_rejected_total", reason="timeout") == CROWD
    assert seen.total("triojam_disconnects_total", reason="line_timeout") == CROWD
    # Five in a hundred answers may be late because this machine is busy.
    waits.sort()
    assert waits[len(waits) * 95 // 100] < prompt


@paths
async def test_server_survives_emfile(path: Sequence[str]) -> None:
    """EMFILE is counted and does not spin. With a free descriptor, a waiting client is served in 1 s."""
    async with attacked(*path) as program, await program.connect() as inside:
        pid = program.process.pid
        await inside.send_all(b"TIME\r\n")
        assert len(await receive_exactly(inside, JAM_BYTES)) == JAM_BYTES
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = program.descriptors()
        next_one = next(number for number in range(len(used) + 1) if number not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (next_one, limits[1]))
        async with await program.connect() as outside:
            await outside.send_all(b"TIME\r\n")
            cpu = cpu_seconds(program)
            async with good_client(lambda: unclosed(inside), pause=0.1):
                await trio.sleep(1)  # the CPU time of this second is measured
            assert cpu_seconds(program) - cpu < 0.3
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            with trio.fail_after(1):
                assert len(await receive_exactly(outside, JAM_BYTES)) == JAM_BYTES
        seen = await program.scrape()
        assert 2 <= seen.total("triojam_accept_errors_total", errno=errno.errorcode[errno.EMFILE]) <= 30


async def unclosed(client: trio.SocketStream) -> trio.SocketStream:
    """Return a connection that is open already."""
    return client


@paths
async def test_slow_scrapers_do_not_delay_answers(path: Sequence[str]) -> None:
    """100 scrapers that send a byte at a time delay neither a good client nor a good scraper."""
    async with attacked(*path) as program, good_client(program.connect, pause=PAUSE):
        slow = [await trio.open_tcp_stream(*program.web) for _ in range(100)]
        for letter in b"GET /metrics HTTP/1.1\r\nX-Slow: ":
            for client in slow:
                with suppress(trio.BrokenResourceError):  # its place has been given to another client
                    await client.send_all(bytes([letter]))
            seen = await program.scrape()
        for client in slow[:-MOST_CONNECTIONS]:
            with suppress(trio.BrokenResourceError):
                assert await receive_all(client) == b""
        for client in slow:
            await client.aclose()
        assert seen.total("triojam_web_rejected_total", reason="per_source") >= 100 - MOST_A_SOURCE


@paths
async def test_an_http_2_preface_takes_no_place(path: Sequence[str]) -> None:
    """After 100 HTTP/2 prefaces with data, scrapes are answered, and the log has no new line."""
    async with attacked(*path) as program:
        for _ in range(100):
            async with await trio.open_tcp_stream(*program.web) as client:
                await client.send_all(H2_PREFACE)
                assert (await receive_all(client)).startswith(b"HTTP/1.1 505 ")
        seen = await program.scrape()
        assert seen.total("triojam_web_rejected_total", reason="bad_request") == 100
        program.process.terminate()
        assert await program.ended() == 0
    events = [entry["event"] for entry in program.log]
    assert events[events.index("serving") + 1].startswith("draining")


async def test_replaced_zone_file_applies_at_sighup(tmp_path: Path) -> None:
    """A replaced zone file has no effect until SIGHUP."""
    zones = resources.files("tzdata") / "zoneinfo"
    zone = tmp_path / "Lab"
    zone.write_bytes((zones / "Etc" / "GMT-1").read_bytes())
    async with serving("--timezone", "Lab", PYTHONTZPATH=str(tmp_path)) as program:

        async def hours_ahead() -> int:
            async with await program.connect() as client:
                await client.send_all(b"TIME\r\n")
                answer = await receive_exactly(client, JAM_BYTES)
            clock = (await program.scrape()).total("triojam_clock_seconds")
            told = int(answer[4:6]) * 60 + int(answer[7:9])
            return round((told - clock / 60) / 60) % 24

        assert await hours_ahead() == 1
        (tmp_path / "new").write_bytes((zones / "Etc" / "GMT-7").read_bytes())
        (tmp_path / "new").replace(zone)
        assert await hours_ahead() == 1
        program.process.send_signal(signal.SIGHUP)
        await program.logged("settings reloaded")
        assert await hours_ahead() == 7


# The most memory of a client that reads no answers. After all have gone, up to half may remain: tables that
# have grown, which the next clients use again.
DEAF_KIB = 40


@pytest.mark.parametrize("path", ["--fast-lane", "--no-fast-lane"])
@pytest.mark.parametrize("data", [b"TIME\r\n" * 4000, (b"\n" * 9 + b"TIME\r\n") * 1600], ids=["plain", "bad"])
async def test_unread_clients_cost_little_memory(path: str, data: bytes) -> None:
    """A client that reads nothing costs less than 40 KiB, and the memory is freed after it has gone."""
    crowd = 1000
    quiet = ("--send-timeout", "600", "--error-budget", "0", "--grace", "0")
    async with attacked(path, *quiet) as program:
        await program.scrape()  # the first scrape takes more memory than the others

        def grown() -> int:
            return memory(program.process.pid)["Pss"] - at_rest

        at_rest = memory(program.process.pid)["Pss"]
        clients = []
        for _ in range(crowd):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(program.address)
            client.setblocking(False)  # noqa: FBT003  # the standard library's signature
            clients.append(client)
        # Until no client can send any more, and the server has stopped reading.
        with trio.fail_after(PATIENCE):
            while True:
                before = (await program.scrape()).total("triojam_requests_total")
                for client in clients:
                    with suppress(BlockingIOError):
                        while True:
                            client.send(data)
                if before == (await program.scrape()).total("triojam_requests_total"):
                    break
        held = grown()
        for client in clients:
            reset_on_close(client)
            client.close()
        with trio.fail_after(PATIENCE):
            while (await program.scrape()).total("triojam_connections_open"):
                pass
        assert held / crowd < DEAF_KIB
        with trio.fail_after(PATIENCE):
            while grown() > held / 2:  # noqa: ASYNC110  # another process
                await trio.sleep(0.05)
