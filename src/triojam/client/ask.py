"""Asks one server, or several at once, for the time."""

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo

import trio

from triojam.client.session import DEFAULT_PORT, Answer, AskError, Session, Target, connect
from triojam.client.wire.strangers import explain


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
    target = Target(host, port)
    async with await connect(target, patience=patience, tls=tls) as session:
        try:
            return await session.ask(patience=patience, zone=zone, now=now)
        except AskError as exc:
            raise await explain(exc, session, target, tls) from exc


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """How servers are asked. The options without a word here: see `ask`.

    precise: find the offset to a fraction of a second. name: the host in the certificate; None = the
    target's.
    """

    precise: bool = False
    patience: float = 5.0
    tls: ssl.SSLContext | None = None
    name: str | None = None
    zone: tzinfo | None = None

    async def ask(self, target: Target) -> Answer | AskError:
        """Ask one server, and return its answer, or the error that says why there is none."""
        try:
            connection = connect(target, patience=self.patience, tls=self.tls, name=self.name)
            async with await connection as session:
                try:
                    return await self._ask(session)
                except AskError as exc:
                    return await explain(exc, session, target, self.tls, self.name)
        except AskError as exc:
            return exc

    async def _ask(self, session: Session) -> Answer:
        if not self.precise:
            return await session.ask(patience=self.patience, zone=self.zone)
        from triojam.client.precise import find_offset  # noqa: PLC0415  # a plain `ask` starts faster

        return await find_offset(session, patience=self.patience, zone=self.zone)


Outcome = Answer | AskError | None
Outcomes = list[Outcome]


async def ask_all(
    targets: Sequence[Target],
    options: AskOptions,
    outcomes: Outcomes,
    show: Callable[[int], None] = lambda _place: None,
) -> None:
    """Ask all servers at once; sets each of `outcomes`, in the order of the targets, when it is known.

    show: called then, with its place.
    """

    async def ask_one(place: int, target: Target) -> None:
        outcomes[place] = await options.ask(target)
        show(place)

    async with trio.open_nursery() as nursery:
        for place, target in enumerate(targets):
            nursery.start_soon(ask_one, place, target)
