"""What is done to a whole server process by other processes; a good client beside them hardly notices."""

import errno
import json
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path

import pytest
import trio

from tests.helpers.hostile import CROWD, RESET_ON_CLOSE
from tests.helpers.idle import memory
from tests.helpers.invariants import JAM_BYTES, good_client
from tests.helpers.program import Program, serving
from tests.helpers.scrape import fetch
from tests.helpers.servers import PATIENCE, receive_all, receive_exactly
from triojam.web.http_server import MOST_CONNECTIONS

PAUSE = 0.005  # between a good client's questions
MEGABYTE = 1000  # in kB
TICKS = 100  # of CPU time in a second, in the files of proc(5)

# The words that choose a path.
PORTABLE, LANE = ("--no-fast-lane",), ("--fast-lane",)
paths = pytest.mark.parametrize("path", [PORTABLE, LANE], ids=["tcp", "lane"])


async def hostile(kind: str, program: Program) -> dict[str, float]:
    """Run hostile clients to their end: what they say became of them."""
    command = [sys.executable, "-m", "tests.helpers.hostile", kind, *map(str, program.address)]
    done = await trio.run_process(command, capture_stdout=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def peak_memory(program: Program) -> int:
    """Return the most memory that the process has had, in kB (proc(5), VmHWM)."""
    status = Path(f"/proc/{program.process.pid}/status").read_text("ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def cpu_seconds(program: Program) -> float:
    """Return the CPU time that the process has had so far (proc(5), utime and stime)."""
    fields = Path(f"/proc/{program.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@paths
async def test_memory_stays_flat(path: Sequence[str]) -> None:
    """A million requests without reading, a gigabyte without LF, 10,000 resets: each costs no memory."""
    async with serving("--send-timeout", "0.3", *path) as program:
        async with good_client(program.connect, pause=PAUSE):
            await program.scrape()
            memory = peak_memory(program)
            unread = await hostile("never_reading", program)
            endless = await hostile("endless_line", program)
            await hostile("resets", program)
            assert peak_memory(program) - memory < 5 * MEGABYTE
        seen = await program.scrape()
    assert unread["sent"] < 6_000_000
    assert endless["sent"] < 100_000_000
    ends = {reason: seen.total("triojam_disconnects_total", reason=reason) for reason in ENDS}
    assert ends == {"send_timeout": 1, "too_long": 1, "reset": CROWD}
    assert seen.total("triojam_response_send_errors_total", reason="timeout") > 0
    assert seen.total("triojam_log_messages_dropped_total") == 0


ENDS = ("send_timeout", "too_long", "reset")


# The portable path has a task to wake for each of ten thousand bytes a second, which is all that it can do.
@pytest.mark.parametrize(("path", "prompt"), [(PORTABLE, 0.5), (LANE, 0.1)], ids=["tcp", "lane"])
async def test_ten_thousand_slowloris(path: Sequence[str], prompt: float) -> None:
    """Each of 10,000 at once is told and closed, not before its time; good answers are hardly later."""
    async with serving("--line-timeout", "2", "--max-connections", "0", *path) as program:
        async with good_client(program.connect, pause=PAUSE, prompt=PATIENCE) as waits:
            crowd = await hostile("slowloris", program)
        seen = await program.scrape()
    assert (crowd["at_once"], crowd["told"]) == (CROWD, CROWD)
    assert crowd["shortest"] >= 2
    assert seen.total("triojam_rejected_total", reason="timeout") == CROWD
    assert seen.total("triojam_disconnects_total", reason="line_timeout") == CROWD
    # Of a hundred answers, five may be late because this machine has other things to do.
    waits.sort()
    assert waits[len(waits) * 95 // 100] < prompt


@paths
async def test_out_of_descriptors(path: Sequence[str]) -> None:
    """EMFILE is counted, and nothing spins; once there is a descriptor, who waits is served within 1 s."""
    async with serving(*path) as program, await program.connect() as inside:
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
                await trio.sleep(1)  # a second in which nothing is to happen
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
async def test_a_hundred_slow_scrapers(path: Sequence[str]) -> None:
    """Those beyond the few are closed; those within never end their requests; time is told as before."""
    async with serving(*path) as program, good_client(program.connect, pause=PAUSE):
        slow = [await trio.open_tcp_stream(*program.web) for _ in range(100)]
        for letter in b"GET /metrics HTTP/1.1\r\nX-Slow: ":
            for client in slow[:MOST_CONNECTIONS]:
                await client.send_all(bytes([letter]))
        for client in slow[MOST_CONNECTIONS:]:
            assert await receive_all(client) == b""
        for client in slow:
            await client.aclose()
        with trio.fail_after(PATIENCE):
            while not await scrapes(program):  # noqa: ASYNC110  # another process sets no Event
                await trio.sleep(0.01)


async def scrapes(program: Program) -> bool:
    """Whether the metrics are to be had."""
    try:
        return (await fetch(program.web, "/metrics")).status == 200
    except OSError:
        return False


async def test_a_replaced_zone_file(tmp_path: Path) -> None:
    """A zone whose file was replaced is served as it was, and from SIGHUP on as it is now."""
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


# What a client that takes no answers may cost at most, in KiB. When all have gone, at most half of what they
# cost is left: tables that have grown, and are used again by the next.
DEAF_KIB = 40


@pytest.mark.parametrize("path", ["--fast-lane", "--no-fast-lane"])
@pytest.mark.parametrize("data", [b"TIME\r\n" * 4000, (b"\n" * 9 + b"TIME\r\n") * 1600], ids=["plain", "bad"])
async def test_deaf_clients_are_small_and_given_back(path: str, data: bytes) -> None:
    """Each costs less than 40 KiB whatever it sends, and when they have gone, so has what they cost."""
    crowd = 1000
    quiet = ("--send-timeout", "600", "--error-budget", "0", "--grace", "0")
    async with serving(path, *quiet) as program:
        await program.scrape()  # the first one takes more memory than the others
        at_rest = memory(program.process.pid)
        clients = []
        for _ in range(crowd):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(program.address)
            client.setblocking(False)  # noqa: FBT003  # the standard library's signature
            clients.append(client)
        # Until no client can send any more, and the server has read all that it is going to.
        with trio.fail_after(PATIENCE):
            while True:
                before = (await program.scrape()).total("triojam_requests_total")
                for client in clients:
                    with suppress(BlockingIOError):
                        while True:
                            client.send(data)
                if before == (await program.scrape()).total("triojam_requests_total"):
                    break
        held = memory(program.process.pid) - at_rest
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.close()
        with trio.fail_after(PATIENCE):
            while (await program.scrape()).total("triojam_connections_open"):
                pass
        assert held / crowd < DEAF_KIB
        with trio.fail_after(PATIENCE):
            while memory(program.process.pid) - at_rest > held / 2:  # noqa: ASYNC110  # another process
                await trio.sleep(0.05)
