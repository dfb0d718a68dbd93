"""The command `watch`: servers asked again and again; a live table on a terminal, plain lines elsewhere."""

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
    """A server, what it said last, and how it has done. round_trips: of the answers, in seconds."""

    target: Target
    last: Answer | AskError | None = None
    failed: int = 0
    round_trips: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=SPARKLINE_LENGTH))

    def add(self, outcome: Answer | AskError) -> None:
        """Take what became of another request."""
        self.last = outcome
        if isinstance(outcome, Answer):
            self.round_trips.append(outcome.round_trip)
            self.recent.append(outcome.round_trip)
        else:
            self.failed += 1


async def watch(
    servers: Sequence[Watched],
    manner: AskOptions,
    show: Callable[[Watched], None],
    *,
    interval: float,
    count: int | None,
) -> None:
    """Ask each server every `interval` seconds, `count` times or for ever, and show each outcome."""

    async def follow(server: Watched) -> None:
        due = trio.current_time()
        while count is None or len(server.round_trips) + server.failed < count:
            await trio.sleep_until(due)
            server.add(await manner.ask(server.target))
            show(server)
            due = max(due + interval, trio.current_time())

    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(follow, server)


@contextmanager
def view(servers: Sequence[Watched], console: Console) -> Iterator[Callable[[Watched], None]]:
    """Open what shows each outcome: a table that is drawn anew, or a line each where that cannot be."""
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
    drawn.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)  # it gives way on a narrow terminal
    for heading in ("answered", "failed"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for server in servers:
        now, trend = ["", "", ""], ""
        if isinstance(server.last, Answer):
            now = [server.last.time, format_offset(server.last.offset, server.last.bound)]
            now.append(format_seconds(server.last.round_trip))
            trend = sparkline(server.recent)
        elif server.last is not None:
            trend = str(server.last)
        # What a server said, and IPv6 addresses in brackets, are not rich's markup.
        texts = map(Text, (str(server.target), *now, trend))
        drawn.add_row(
            *texts,
            f"{len(server.round_trips):,}",
            Text(f"{server.failed:,}", style="red" if server.failed else ""),
        )
    return drawn


def plain_line(server: Watched) -> str:
    """Render what a server said last."""
    said = cells(server.last)[:3] if isinstance(server.last, Answer) else (str(server.last),)
    return "  ".join((str(server.target), *said))


def summary(servers: Sequence[Watched]) -> str:
    """Render how each server has done in all."""
    lines = []
    for server in servers:
        line = f"{server.target}: {len(server.round_trips):,} answered, {server.failed:,} failed"
        if trips := server.round_trips:
            shortest, middle, longest = map(format_seconds, (min(trips), median(trips), max(trips)))
            line += f"; round trip {shortest} to {longest}, median {middle}"
        lines.append(line)
    return "\n".join(lines)


def sparkline(values: Sequence[float]) -> str:
    """Render numbers as bars between 0 and the largest."""
    largest = max(values, default=0.0) or 1.0
    return "".join(SPARKS[round(value / largest * (len(SPARKS) - 1))] for value in values)
