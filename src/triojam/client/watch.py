"""The command `watch`: asks servers repeatedly; shows a live table on a terminal, plain lines elsewhere."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from triojam.client.ask import AskOptions
from triojam.client.render import cells, format_offset, format_seconds
from triojam.client.session import Answer, AskError, Target

SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE_LENGTH = 24


@dataclass
class Watched:
    """A server, its last outcome, and all outcomes in numbers. round_trips: of all answers, in seconds."""

    target: Target
    last: Answer | AskError | None = None
    failed: int = 0
    round_trips: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=SPARKLINE_LENGTH))

    def add(self, outcome: Answer | AskError) -> None:
        """Add the outcome of a request."""
        self.last = outcome
        if isinstance(outcome, Answer):
            self.round_trips.append(outcome.round_trip)
            self.recent.append(outcome.round_trip)
        else:
            self.failed += 1


async def watch(
    servers: Sequence[Watched],
    options: AskOptions,
    show: Callable[[Watched], None],
    *,
    interval: float,
    count: int | None,
) -> None:
    """Ask each server every `interval` seconds, `count` times or without end, and show each outcome."""

    async def follow(server: Watched) -> None:
        due = trio.current_time()
        while count is None or len(server.round_trips) + server.failed < count:
            await trio.sleep_until(due)
            server.add(await options.ask(server.target))
            show(server)
            due = max(due + interval, trio.current_time())

    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(follow, server)


@contextmanager
def view(servers: Sequence[Watched], console: Console) -> Iterator[Callable[[Watched], None]]:
    """Yield a function that shows an outcome: on a terminal in a live table, elsewhere as a line."""
    if not console.is_terminal:
        yield lambda server: print(plain_line(server), file=console.file, flush=True)
        return
    with Live(table(servers), console=console, auto_refresh=False) as live:
        yield lambda _: live.update(table(servers), refresh=True)


def table(servers: Sequence[Watched]) -> Table:
    """Render all servers for a terminal."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("server", "time", "offset", "round trip"):
        drawn.add_column(heading, no_wrap=True)
    drawn.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)  # cut on a narrow terminal
    for heading in ("answered", "failed"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for server in servers:
        last = server.last
        if isinstance(last, Answer):
            offset, round_trip = format_offset(last.offset, last.bound), format_seconds(last.round_trip)
            shown = (last.time, offset, round_trip, sparkline(server.recent))
        else:
            shown = ("", "", "", str(last or ""))
        # Text, as rich would read markup in an answer or in the brackets of an IPv6 address.
        drawn.add_row(
            *map(Text, (str(server.target), *shown)),
            f"{len(server.round_trips):,}",
            Text(f"{server.failed:,}", style="red" if server.failed else ""),
        )
    return drawn


def plain_line(server: Watched) -> str:
    """Render a server's last outcome."""
    shown = cells(server.last)[:3] if isinstance(server.last, Answer) else (str(server.last),)
    return "  ".join((str(server.target), *shown))


def summary(servers: Sequence[Watched]) -> str:
    """Render the totals of each server."""
    lines = []
    for server in servers:
        line = f"{server.target}: {len(server.round_trips):,} answered, {server.failed:,} failed"
        if trips := server.round_trips:
            shortest, middle, longest = map(format_seconds, (min(trips), median(trips), max(trips)))
            line += f"; round trip {shortest} to {longest}, median {middle}"
        lines.append(line)
    return "\n".join(lines)


def sparkline(values: Sequence[float]) -> str:
    """Render numbers as bars; the largest number has the highest bar."""
    largest = max(values, default=0.0) or 1.0
    return "".join(SPARKS[round(value / largest * (len(SPARKS) - 1))] for value in values)
