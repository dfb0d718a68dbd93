"""The command `watch`: asks servers repeatedly; shows a live table on a terminal, plain lines elsewhere."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median

import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from triojam.client.ask import AskOptions
from triojam.client.render import cells, describe, format_offset, format_seconds
from triojam.client.session import Answer, AskError, Target
from triojam.client.verdicts.agreement import Verdict, judge

SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE_LENGTH = 24
FEWEST_BARS = 4
WRONG = ", wrong"
COUNTS = ("answered", "failed")
# Of columns whose heading is not their name: the first that fits.
HEADINGS = {"recent": (), "answered": ("answered", "ok")}
# What a terminal shows of Ctrl-C. Behind a row as wide as the terminal it would begin a new line, and the
# last drawing of the table would leave the header of the one before.
ECHO = "^C"


@dataclass
class Watched:
    """A server, its last outcome, and all outcomes in numbers.

    at: this machine's time of the last outcome, as hh:mm:ss. round_trips: of all answers, in seconds.
    """

    target: Target
    last: Answer | AskError | None = None
    at: str = ""
    failed: int = 0
    round_trips: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=SPARKLINE_LENGTH))

    def add(self, outcome: Answer | AskError, at: str) -> None:
        """Add the outcome of a request."""
        self.last, self.at = outcome, at
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
            outcome = await options.ask(server.target)
            server.add(outcome, f"{datetime.now(options.zone):%H:%M:%S}")
            show(server)
            due = max(due + interval, trio.current_time())

    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(follow, server)


@contextmanager
def view(servers: Sequence[Watched], console: Console) -> Iterator[Callable[[Watched], None]]:
    """Yield a function that shows an outcome: on a terminal in a live table, elsewhere as a line."""
    if not console.is_terminal:
        yield _printer(servers, console)
        return

    def draw() -> Table:
        return table(servers, console.width - len(ECHO))

    with Live(draw(), console=console, auto_refresh=False) as live:
        yield lambda _: live.update(draw(), refresh=True)


def _printer(servers: Sequence[Watched], console: Console) -> Callable[[Watched], None]:
    said: object = None

    def show(server: Watched) -> None:
        nonlocal said
        print(plain_line(server), file=console.file, flush=True)
        verdict = _verdict(servers)
        if verdict is not None and (groups := (verdict.groups, set(verdict.off))) != said:
            said = groups
            print(describe([each.target for each in servers], verdict), file=console.file, flush=True)

    return show


def _verdict(servers: Sequence[Watched]) -> Verdict | None:
    return judge([each.last for each in servers])


def table(servers: Sequence[Watched], width: int) -> Table:
    """Render all servers for a terminal."""
    rows = [_cells(server) for server in servers]
    verdict = _verdict(servers)
    for place in verdict.off if verdict is not None else ():
        rows[place]["offset"] += WRONG
    sizes = _fit(rows, width)
    for row in rows:
        row["recent"] = row["recent"][-sizes.get("recent", 1) :]
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name, size in sizes.items():
        drawn.add_column(
            next((heading for heading in HEADINGS.get(name, (name,)) if len(heading) <= size), ""),
            width=size,
            justify="right" if name in COUNTS else "left",
            no_wrap=name != "offset",
            overflow="fold" if name == "offset" else "ellipsis",
        )
    for row in rows:
        # Text, as rich would read markup in an answer or in the brackets of an IPv6 address.
        drawn.add_row(*(Text(row[name], style=_style(name, row[name])) for name in sizes))
    return drawn


def _cells(server: Watched) -> dict[str, str]:
    last = server.last
    cells = {"server": str(server.target), "time": "", "offset": str(last or ""), "round trip": ""}
    if isinstance(last, Answer):
        offset = format_offset(last.offset, last.bound, words=False)
        cells |= {"time": last.time, "offset": offset, "round trip": format_seconds(last.round_trip)}
    cells["recent"] = sparkline(server.recent) if isinstance(last, Answer) else ""
    return cells | {"answered": f"{len(server.round_trips):,}", "failed": f"{server.failed:,}"}


def _fit(rows: Sequence[dict[str, str]], width: int) -> dict[str, int]:
    """Return the columns that fit, and the width of each.

    On a narrow terminal, the bars go first, then most of the address, then the round trip. The offset, or the
    reason of a failure, is wrapped. Time and counts are always whole.
    """
    sizes = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    sizes |= {"time": len("hh:mm:ss"), "recent": SPARKLINE_LENGTH}

    wide = sizes["server"]

    def taken() -> int:
        return sum(sizes.values()) + len(sizes) - 1

    def missing() -> int:
        return max(0, taken() - width)

    def shrink(name: str, least: int) -> None:
        sizes[name] -= min(missing(), max(0, sizes[name] - least))

    shrink("offset", len("connection refused"))
    shrink("recent", FEWEST_BARS)
    if missing():
        del sizes["recent"]
    shrink("server", len("server"))
    if missing():
        del sizes["round trip"]
    shrink("answered", max(len("ok"), *(len(row["answered"]) for row in rows)))
    shrink("offset", len("connection"))
    shrink("server", 1)
    sizes["server"] += min(wide - sizes["server"], width - taken())
    return sizes


def _style(name: str, text: str) -> str:
    bad = text != "0" if name == "failed" else name == "offset" and text.endswith(WRONG)
    return "red" if bad else ""


def plain_line(server: Watched) -> str:
    """Render a server's last outcome; a failure has this machine's time."""
    shown = cells(server.last)[:3] if isinstance(server.last, Answer) else (server.at, str(server.last))
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
    if (verdict := _verdict(servers)) is not None:
        lines.append(describe([each.target for each in servers], verdict))
    return "\n".join(lines)


def sparkline(values: Sequence[float]) -> str:
    """Render numbers as bars; the largest number has the highest bar."""
    largest = max(values, default=0.0) or 1.0
    return "".join(SPARKS[round(value / largest * (len(SPARKS) - 1))] for value in values)
