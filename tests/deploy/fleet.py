"""Three servers behind HAProxy, with the files of deploy/, each on a machine of its own (network namespaces).

`python -m tests.deploy.fleet roll --requests 30000` restarts the servers one after the other under load.
`… limits` connects from several addresses. They print figures as JSON, and need root.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.deploy.files import CONFIGURATION, FOR_ALL_MACHINES, SYSCTLS, settings_beside, sysctls
from tests.helpers.namespaces import ROUTER, Network, network
from tests.helpers.program import COMMAND, UNMEASURED, Program, environment, launched
from tests.helpers.requirements import require_program
from tests.helpers.scrape import scrape
from tests.helpers.servers import PATIENCE
from tests.helpers.waiting import eventually

# The addresses of haproxy.cfg.
BALANCER = "192.0.2.10"
SERVERS = {"time1": "192.0.2.11", "time2": "192.0.2.12", "time3": "192.0.2.13"}
EXPORTER = (BALANCER, 8405)
CLIENTS = "clients"
CLIENTS_ROUTER = "198.51.100.254"
GOOD, GREEDY, DENIED = "198.51.100.1", "198.51.100.2", "198.51.100.3"

LAME_DUCK = 2
RATE = 1500
FOR_LONG = "--duration=300"
STAYING = 40
PER_SOURCE = 5


def run(words: Sequence[str]) -> dict[str, Any]:
    """Make the machines, run a part of this module on the clients' machine, and return its figures."""
    require_program("haproxy", "haproxy")
    router = dict.fromkeys(SERVERS, BALANCER) | {CLIENTS: CLIENTS_ROUTER}
    machines = {name: [address] for name, address in SERVERS.items()} | {CLIENTS: [GOOD, GREEDY, DENIED]}
    with network(router, machines) as made:
        for machine in (ROUTER, CLIENTS):  # the clients' machine opens as many connections as HAProxy
            for file in SYSCTLS:
                made.apply(machine, sysctls(file))
        for machine in SERVERS:
            made.apply(machine, sysctls(FOR_ALL_MACHINES))
        ended = subprocess.run(
            [*made.inside(CLIENTS), sys.executable, "-m", __spec__.name, "--inside", made.prefix, *words],
            stdout=subprocess.PIPE,
            env=environment(**UNMEASURED),
            check=True,
        )
    figures: dict[str, Any] = json.loads(ended.stdout)
    return figures


class Seat:
    """The place of one server, and the process that serves there.

    limits: words for its command line. connections, responses: the counts of its former processes.
    """

    def __init__(self, made: Network, name: str, limits: Sequence[str]) -> None:
        self.name = name
        self.web = (SERVERS[name], 45001)
        self.connections = self.responses = 0
        words = ["--host", SERVERS[name], "--metrics-host", SERVERS[name], "--log-format", "json"]
        words += ["--proxies", ",".join(settings_beside()["proxies"]), f"--lame-duck={LAME_DUCK}", *limits]
        self._command = [*made.inside(name), *COMMAND, *words]
        self._end = self._ended = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run one process, until `stop`; it must drain with status 0 and balance."""
        self._end, self._ended = trio.Event(), trio.Event()
        async with launched(self._command, UNMEASURED) as process:
            program = Program(process)
            await program.logged("serving")
            task_status.started()
            await self._end.wait()
            process.terminate()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._last_reading, process)
                assert await program.ended() == 0, program.log
            (totals,) = [each for each in program.log if each["event"] == "stopped"]
            assert totals["requests"] == totals["responses"] + totals["rejected"] + totals["send_errors"]
            self.responses += totals["responses"]
        self._ended.set()

    async def stop(self) -> None:
        """Stop the process as a service manager does, and wait for its end."""
        self._end.set()
        with trio.fail_after(PATIENCE):
            await self._ended.wait()

    async def _last_reading(self, process: trio.Process) -> None:
        """Read the number of connections until the process has ended; the last ones come long before that."""
        last = 0.0
        while process.poll() is None:
            with suppress(OSError):
                last = (await scrape(self.web)).total("triojam_connections_total")
            await trio.sleep(0.02)
        self.connections += int(last)


class Fleet:
    """Three servers and a HAProxy, which run."""

    def __init__(self, made: Network, nursery: trio.Nursery, limits: Sequence[str]) -> None:
        self._nursery = nursery
        self.seats = [Seat(made, name, limits) for name in SERVERS]

    async def up(self, seat: Seat) -> bool:
        """Whether HAProxy sends clients to a server."""
        seen = await scrape(EXPORTER)
        return seen.total("haproxy_server_status", proxy="triojam", server=seat.name, state="UP") == 1

    async def down(self, seat: Seat) -> bool:
        """Whether HAProxy sends no clients to a server."""
        return not await self.up(seat)

    async def start(self, seat: Seat) -> None:
        """Start a server, and wait until HAProxy sends clients to it."""
        await self._nursery.start(seat.serve)
        await eventually(partial(self.up, seat))

    async def roll(self) -> None:
        """Restart each server, one after the other."""
        for seat in self.seats:
            await seat.stop()
            await eventually(partial(self.down, seat))
            await self.start(seat)

    async def totals(self) -> dict[str, int]:
        """Stop all servers, and return what they and HAProxy have counted."""
        async with trio.open_nursery() as nursery:
            for seat in self.seats:
                nursery.start_soon(seat.stop)
        seen = await scrape(EXPORTER)
        again = ("haproxy_server_retry_warnings_total", "haproxy_server_redispatch_warnings_total")
        return {
            "sessions": int(await sessions()),
            "retries": int(sum(seen.total(each, proxy="triojam") for each in again)),
            "connections": sum(each.connections for each in self.seats),
            "responses": sum(each.responses for each in self.seats),
        }


@asynccontextmanager
async def fleet(made: Network, limits: Sequence[str] = ()) -> AsyncIterator[Fleet]:
    """Start HAProxy and the servers, and end them."""
    command = [*made.inside(ROUTER), require_program("haproxy", "haproxy"), "-db", "-f", str(CONFIGURATION)]
    with tempfile.TemporaryFile() as log:
        async with launched(command, {}, stderr=log.fileno()), trio.open_nursery() as nursery:
            running = Fleet(made, nursery, limits)
            for seat in running.seats:
                await nursery.start(seat.serve)
            for seat in running.seats:
                await eventually(partial(_reachable, running, seat))
            yield running
            nursery.cancel_scope.cancel()


async def _reachable(running: Fleet, seat: Seat) -> bool:
    with suppress(OSError, AssertionError):  # HAProxy is not there yet
        return await running.up(seat)
    return False


async def load(*words: str, during: Callable[[], Awaitable[None]] | None = None) -> dict[str, Any]:
    """Run `triojam load` against the fleet, with the metrics of all servers, and return its result.

    during: the load is interrupted when this is done. Its text goes to stderr. Its patience is longer than a
    process of a busy machine stands still.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [*COMMAND, "load", BALANCER, "--timeout=60", f"--json={result}", *words]
        command += [f"--metrics={address}:45001" for address in SERVERS.values()]
        before = await sessions()
        screen = sys.stderr.fileno()
        async with launched(command, UNMEASURED, stdout=screen, stderr=screen) as process:
            if during is not None:

                async def has_begun() -> bool:
                    return await sessions() > before + 1  # load sends one request before it begins

                await eventually(has_begun)
                await during()
                process.send_signal(signal.SIGINT)
            with trio.fail_after(3 * PATIENCE):
                status = await process.wait()
        figures: dict[str, Any] = json.loads(result.read_text("utf-8"))
        return {"status": status, **figures, "timeline": None}


async def sessions() -> float:
    """Return the number of HAProxy's sessions with all servers."""
    return (await scrape(EXPORTER)).total("haproxy_server_sessions_total", proxy="triojam")


async def roll(made: Network, requests: int) -> dict[str, Any]:
    """Restart all servers under clients that connect, ask and close; then again under clients that stay."""
    visits = ("--per-connection", "--connections=100", f"--rate={RATE}")

    async def long_enough() -> None:
        ends = trio.current_time() + requests / RATE
        await running.roll()
        await trio.sleep_until(ends)

    async with fleet(made) as running:
        figures = {
            "visits": await load(*visits, FOR_LONG, during=long_enough),
            "staying": await load(
                f"--connections={STAYING}", "--think-time=0.2", FOR_LONG, during=running.roll
            ),
            "at rest": await load(*visits, "--requests=1000"),
        }
        return figures | {"totals": await running.totals()}


async def limits(made: Network) -> dict[str, Any]:
    """Connect from several addresses, through HAProxy and directly; return what each client gets."""
    words = [f"--connections-per-source={PER_SOURCE}", f"--deny={DENIED}"]
    async with fleet(made, words) as running, AsyncExitStack() as clients:
        ask = partial(_ask_from, clients)
        allowed = PER_SOURCE * len(SERVERS)
        replies = {
            "greedy": [await ask(GREEDY, BALANCER) for _ in range(allowed + 5)],
            "good": [await ask(GOOD, BALANCER) for _ in range(allowed)],
            "denied": [await ask(DENIED, BALANCER) for _ in range(2)],
            "greedy, directly": [await ask(GREEDY, SERVERS["time1"])],
        }
        scrapes = [await scrape(seat.web) for seat in running.seats]
        await clients.aclose()
        totals = await running.totals()
    rejected = {
        reason: sum(each.total("triojam_connections_rejected_total", reason=reason) for each in scrapes)
        for reason in ("denied", "per_source", "proxy_header")
    }
    return {"replies": replies, "rejected": rejected, "totals": totals}


async def _ask_from(clients: AsyncExitStack, source: str, server: str) -> str:
    """Connect from an address, send a request and return the beginning of the reply; the connection stays."""
    stream = await trio.open_tcp_stream(server, 45000, local_address=source)
    await clients.enter_async_context(stream)
    with suppress(trio.BrokenResourceError), trio.fail_after(PATIENCE):
        await stream.send_all(b"TIME\r\n")
        reply = bytes(await stream.receive_some()).decode()
        return reply.partition(":")[0]  # JAM hh, or ERROR and the reason
    return ""


def main() -> None:
    """Run one part, and print its figures."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("part", choices=["roll", "limits"])
    parser.add_argument(
        "--requests", type=int, default=30000, help="at least this many connections to roll under"
    )
    parser.add_argument("--inside", metavar="PREFIX", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is None:
        figures = run(sys.argv[1:])
    elif options.part == "roll":
        figures = trio.run(roll, Network(options.inside), options.requests)
    else:
        figures = trio.run(limits, Network(options.inside))
    json.dump(figures, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
