"""Asks one server, or several at once, for their time."""

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

import trio

from triojam.client.session import DEFAULT_PORT, Answer, AskError, Target, connect


async def ask(  # noqa: PLR0913  # what can be asked for has defaults
    host: str,
    port: int = DEFAULT_PORT,
    *,
    patience: float = 5.0,
    tls: ssl.SSLContext | None = None,
    zone: tzinfo | None = None,
    now: Callable[[], float] = time.time,
) -> Answer:
    """Ask a server for its time, once.

    patience: for the connection, and then for the answer, in seconds. tls: how to encrypt; None = not.
    zone: the time zone that the server answers in; None = this machine's. now: this machine's clock.

    Raises AskError.
    """
    async with await connect(Target(host, port), patience=patience, tls=tls) as session:
        return await session.ask(patience=patience, zone=zone, now=now)


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """How servers are asked. Durations are in seconds; `ask` says what each field means."""

    precise: bool = False
    patience: float = 5.0
    tls: ssl.SSLContext | None = None
    zone: tzinfo | None = None

    async def ask(self, target: Target) -> Answer | AskError:
        """Ask one server, and return what it said or why it did not."""
        options: dict[str, Any] = {"patience": self.patience, "tls": self.tls, "zone": self.zone}
        try:
            if not self.precise:
                return await ask(target.host, target.port, **options)
            from triojam.client.precise import ask_precisely  # noqa: PLC0415  # a plain `ask` starts quicker

            return await ask_precisely(target.host, target.port, **options)
        except AskError as exc:
            return exc


Outcomes = list[Answer | AskError | None]


async def ask_all(targets: Sequence[Target], manner: AskOptions, outcomes: Outcomes) -> None:
    """Ask all servers at once; fills `outcomes`, in the order of the targets, as they come."""

    async def ask_one(place: int, target: Target) -> None:
        outcomes[place] = await manner.ask(target)

    async with trio.open_nursery() as nursery:
        for place, target in enumerate(targets):
            nursery.start_soon(ask_one, place, target)
