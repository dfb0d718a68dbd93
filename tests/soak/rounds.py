"""The rounds of a soak: a rest, honest clients alone, then all clients at once."""

import json
import random
import ssl
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
import trustme

from tests.soak.clients import Client, Tally, Target, repeat_until_the_end
from tests.soak.honest import HONEST
from tests.soak.hostile import HOSTILE, is_denied, repeat_until_cancelled
from tests.soak.record import Record, Restarts, Round
from tests.soak.restarts import restart_repeatedly
from tests.soak.sampling import Sample, look
from tests.soak.servers import WRONG, Running, running

# The longest wait for a rest, in seconds. The record then has the last sample.
SETTLE = 5.0
LOOK_EVERY = 10.0
# In seconds. The task of a web connection lives a little longer than the scrape before.
LEFT_BEHIND = 0.3
# The least time of a round with all clients, in seconds.
SHORTEST = 1.0
# The part of a round in which honest clients are alone.
ALONE = 0.1
RELOADS_PER_ROUND = 2


@dataclass
class Rounds:
    """The rounds of a running soak. samples: taken while all clients were there."""

    server: Running
    target: Target
    seed: int
    began: float = field(default_factory=trio.current_time)
    honest: Tally = field(default_factory=Tally)
    done: list[Round] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    reloaded: list[float] = field(default_factory=list)

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return trio.current_time() - self.began

    async def sample(self) -> Sample:
        """Take a sample of the server."""
        return await look(self.server.process.pid, self.target.web, self.now())

    async def rest(self) -> Sample:
        """Wait until the server is as at the last rest, for a limited time; return the last sample."""
        like = self.done[-1].rest if self.done else None
        deadline = trio.current_time() + SETTLE
        while True:
            await trio.sleep(LEFT_BEHIND)
            seen = await self.sample()
            calm = not (seen.connections or seen.unaccounted or seen.unended)
            same = like is None or (like.descriptors, like.tasks) == (seen.descriptors, seen.tasks)
            if (calm and same) or trio.current_time() >= deadline:
                return seen

    async def round(self, seconds: float) -> None:
        """Run one round."""
        rest = await self.rest()
        alone = Tally()
        await self._honest(seconds * ALONE, alone)
        after = await self.rest()
        self.done.append(Round(rest, alone, after))
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
                    nursery.start_soon(repeat_until_cancelled, visit, client, pause)
            nursery.start_soon(self._look_now_and_then)
            nursery.start_soon(self._operate, left)
            async with trio.open_nursery() as honest:
                honest.start_soon(self._honest, left, everybody)
                honest.start_soon(self._good, left, everybody)
            nursery.cancel_scope.cancel()
        self.honest.add(everybody)
        self._say(rest)

    def _say(self, rest: Sample) -> None:
        """Print the sample of a rest."""
        print(  # noqa: T201  # progress of a long run
            f"{rest.seconds:5.0f} s: {rest.resident} KiB, {rest.anonymous} of them anonymous, "
            f"{rest.descriptors} descriptors, {rest.running} tasks, {rest.unaccounted:g} unaccounted, "
            f"{self.honest.failures.total()} failures of honest clients",
            flush=True,
        )

    def _client(self, name: str, source: str, seconds: float, tally: Tally) -> Client:
        return Client(
            target=self.target,
            source=source,
            chance=random.Random(f"{self.seed}/{len(self.done)}/{name}"),
            ends=trio.current_time() + seconds,
            tally=tally,
        )

    async def _honest(self, seconds: float, tally: Tally) -> None:
        async with trio.open_nursery() as nursery:
            for number, (visit, copies) in enumerate(HONEST.items()):
                for copy in range(copies):
                    source = f"127.0.1.{number * 10 + copy + 1}"
                    client = self._client(f"{visit.__name__}/{copy}", source, seconds, tally)
                    nursery.start_soon(repeat_until_the_end, visit, client)

    async def _good(self, seconds: float, tally: Tally) -> None:
        """Run the good client."""
        host, port = self.target.plain
        done = await trio.run_process(
            [sys.executable, "-m", "tests.soak.latency_client", host, str(port), f"{max(seconds - 1, 1)}"],
            capture_stdout=True,
            check=False,
        )
        if done.returncode:
            tally.failures["the good client was not answered"] += 1
            return
        latencies = json.loads(done.stdout)
        self.done[-1].kept, self.done[-1].fresh = latencies["kept"], latencies["fresh"]

    async def _look_now_and_then(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            self.samples.append(await self.sample())

    async def _operate(self, seconds: float) -> None:
        """Reload with a good file and a bad one in turns."""
        chance = random.Random(f"{self.seed}/{len(self.done)}/operator")
        for number in range(RELOADS_PER_ROUND):
            await trio.sleep(seconds / (RELOADS_PER_ROUND + 1))
            await self.server.reload(wrong=chance.choice(WRONG) if number % 2 else None)
            self.reloaded.append(self.now())


async def soak(
    folder: Path, *, seconds: float, round_seconds: float, restart_every: float, seed: int
) -> Record:
    """Run a whole soak, and return its record."""
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    own, other = folder / "server", folder / "restarted"
    own.mkdir()
    other.mkdir()
    restarts = Restarts()
    async with running(own, authority) as server:
        target = Target(server.address("addresses"), server.address("tls"), server.address("metrics"), trust)
        rounds = Rounds(server, target, seed)
        async with trio.open_nursery() as nursery:
            restart = partial(
                restart_repeatedly, every=restart_every, seconds=seconds, seed=seed, clock=rounds.now
            )
            nursery.start_soon(restart, other, authority, target, restarts)
            while (left := seconds - rounds.now()) > 1:
                await rounds.round(min(round_seconds, left))
        last = await rounds.rest()
        status, _ = await server.stop()
    return Record(
        seconds=seconds,
        rounds=rounds.done,
        last=last,
        samples=rounds.samples,
        honest=rounds.honest,
        reloads=dict(server.reloads),
        reloaded=rounds.reloaded,
        grave=server.log.grave,
        status=status,
        restarts=restarts,
    )
