"""The course of a soak: rounds of rest, of honest clients alone, and of everybody at once."""

import json
import random
import ssl
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
import trustme

from tests.soak.clients import Client, Tally, Target, comes_until_the_end
from tests.soak.honest import HONEST
from tests.soak.hostile import HOSTILE, comes_again, is_denied
from tests.soak.record import Record, Restarts, Round
from tests.soak.restarts import restart_again_and_again
from tests.soak.sampling import Sample, look
from tests.soak.servers import WRONG, Running, running

# How long the server may take to be at rest, in seconds; whatever it is like then is what is recorded.
SETTLE = 5.0
LOOK_EVERY = 10.0
# How long nothing that looked before is still to be seen: a web connection's task outlives it a little.
LEFT_BEHIND = 0.3
# Whatever the rests took of a round, this is left for everybody, in seconds.
SHORTEST = 1.0
# The part of a round in which honest clients are alone.
ALONE = 0.1
RELOADS_PER_ROUND = 2


@dataclass
class Course:
    """A soak under way. samples: looks at the server while everybody was there."""

    server: Running
    target: Target
    seed: int
    began: float = field(default_factory=trio.current_time)
    honest: Tally = field(default_factory=Tally)
    rounds: list[Round] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    reloaded: list[float] = field(default_factory=list)

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return trio.current_time() - self.began

    async def look(self) -> Sample:
        """Look at the server as it is."""
        return await look(self.server.process.pid, self.target.web, self.now())

    async def rest(self) -> Sample:
        """Wait until the server is at rest, as it was at the last rest, or will not be; look at it then."""
        like = self.rounds[-1].rest if self.rounds else None
        deadline = trio.current_time() + SETTLE
        while True:
            await trio.sleep(LEFT_BEHIND)
            seen = await self.look()
            calm = not (seen.connections or seen.unaccounted or seen.unended)
            same = like is None or (like.descriptors, like.tasks) == (seen.descriptors, seen.tasks)
            if (calm and same) or trio.current_time() >= deadline:
                return seen

    async def round(self, seconds: float) -> None:
        """Go through one round."""
        rest = await self.rest()
        alone = Tally()
        await self._honest(seconds * ALONE, alone)
        after = await self.rest()
        self.rounds.append(Round(rest, alone, after))
        self.honest.add(alone)
        everybody = Tally()
        left = max(seconds - (self.now() - rest.seconds), SHORTEST)
        async with trio.open_nursery() as nursery:
            for number, (visit, (copies, pause)) in enumerate(HOSTILE.items()):
                network = 66 if visit is is_denied else 2
                for copy in range(copies):
                    client = self._client(
                        f"{visit.__name__}/{copy}", f"127.0.{network}.{number + 1}", left, everybody
                    )
                    nursery.start_soon(comes_again, visit, client, pause)
            nursery.start_soon(self._look_now_and_then)
            nursery.start_soon(self._operate, left)
            async with trio.open_nursery() as honest:
                honest.start_soon(self._honest, left, everybody)
                honest.start_soon(self._good, left, everybody)
            nursery.cancel_scope.cancel()
        self.honest.add(everybody)
        self._say(rest)

    def _say(self, rest: Sample) -> None:
        """Say how the server was at rest; an hour is long."""
        print(  # noqa: T201  # for whoever waits
            f"{rest.seconds:5.0f} s: {rest.resident} KiB, {rest.anonymous} of them anonymous, "
            f"{rest.descriptors} descriptors, {rest.running} tasks, {rest.unaccounted:g} unaccounted, "
            f"{self.honest.failures.total()} let down",
            flush=True,
        )

    def _client(self, name: str, source: str, seconds: float, tally: Tally) -> Client:
        return Client(
            target=self.target,
            source=source,
            chance=random.Random(f"{self.seed}/{len(self.rounds)}/{name}"),
            ends=trio.current_time() + seconds,
            tally=tally,
        )

    async def _honest(self, seconds: float, tally: Tally) -> None:
        async with trio.open_nursery() as nursery:
            for number, (visit, copies) in enumerate(HONEST.items()):
                for copy in range(copies):
                    source = f"127.0.1.{number * 10 + copy + 1}"
                    client = self._client(f"{visit.__name__}/{copy}", source, seconds, tally)
                    nursery.start_soon(comes_until_the_end, visit, client)

    async def _good(self, seconds: float, tally: Tally) -> None:
        """Let the good client ask."""
        host, port = self.target.plain
        done = await trio.run_process(
            [sys.executable, "-m", "tests.soak.good", host, str(port), f"{max(seconds - 1, 1)}"],
            capture_stdout=True,
            check=False,
        )
        if done.returncode:
            tally.failures["the good client was not answered"] += 1
            return
        latencies = json.loads(done.stdout)
        self.rounds[-1].kept, self.rounds[-1].fresh = latencies["kept"], latencies["fresh"]

    async def _look_now_and_then(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            self.samples.append(await self.look())

    async def _operate(self, seconds: float) -> None:
        """Reload, with a good file and a bad one by turns."""
        chance = random.Random(f"{self.seed}/{len(self.rounds)}/operator")
        for number in range(RELOADS_PER_ROUND):
            await trio.sleep(seconds / (RELOADS_PER_ROUND + 1))
            await self.server.reload(wrong=chance.choice(WRONG) if number % 2 else None)
            self.reloaded.append(self.now())


async def soak(
    folder: Path, *, seconds: float, round_seconds: float, restart_every: float, seed: int
) -> Record:
    """Run it all, and return what was seen."""
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    own, other = folder / "server", folder / "restarted"
    own.mkdir()
    other.mkdir()
    restarts = Restarts()
    async with running(own, authority) as server:
        target = Target(server.address("time"), server.address("tls"), server.address("metrics"), trust)
        course = Course(server, target, seed)
        async with trio.open_nursery() as nursery:
            restart = partial(
                restart_again_and_again, every=restart_every, seconds=seconds, seed=seed, clock=course.now
            )
            nursery.start_soon(restart, other, authority, target, restarts)
            while (left := seconds - course.now()) > 1:
                await course.round(min(round_seconds, left))
        last = await course.rest()
        status, _ = await server.stop()
    return Record(
        seconds=seconds,
        rounds=course.rounds,
        last=last,
        samples=course.samples,
        honest=course.honest,
        reloads=dict(server.reloads),
        reloaded=course.reloaded,
        grave=server.log.grave,
        status=status,
        restarts=restarts,
    )
