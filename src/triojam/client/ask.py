"""Asks one server, or several at once, for the time."""

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo

import trio

from triojam.client.session import DEFAULT_PORT, Answer, AskError, Target, connect


async def ask(  # noqa: PLR0913  # every option has a default
    host: str,
    port: int = DEFAULT_PORT,
    *,
    patience: float = 5.0,
    tls: ssl.SSLContext | None = None,
    zone: tzinfo | None = None,
    now: Callable[[], float] = time.time,
) -> Answer:
    """Ask a server for the time, once.

    patience: how long to wait for the connection, and then for the answer, in seconds. tls: encrypts the
    connection; None = plain TCP. zone: the time zone of the answers; None = this machine's. now: this
    machine's clock.

    Raises AskError.
    """
    async with await connect(Target(host, port), patience=patience, tls=tls) as session:
        return await session.ask(patience=patience, zone=zone, now=now)


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """How servers are asked. precise: find the offset to a fraction of a second. The others: see `ask`."""

    precise: bool = False
    patience: float = 5.0
    tls: ssl.SSLContext | None = None
    zone: tzinfo | None = None

    async def ask(self, target: Target) -> Answer | AskError:
        """Ask one server, and return its answer, or the error that says why there is none."""
        try:
            async with await connect(target, patience=self.patience, tls=self.tls) as session:
                if not self.precise:
                    return await session.ask(patience=self.patience, zone=self.zone)
                from triojam.client.precise import find_offset  # noqa: PLC0415  # a plain `ask` starts faster

                return await find_offset(session, patience=self.patience, zone=self.zone)
        except AskError as exc:
            return exc


Outcomes = list[Answer | AskError | None]


async def ask_all(targets: Sequence[Target], options: AskOptions, outcomes: Outcomes) -> None:
    """Ask all servers at once; sets each of `outcomes`, in the order of the targets, when it is known."""

    async def ask_one(place: int, target: Target) -> None:
        outcomes[place] = await options.ask(target)

    async with trio.open_nursery() as nursery:
        for place, target in enumerate(targets):
            nursery.start_soon(ask_one, place, target)
