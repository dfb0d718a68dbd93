"""The progress of a load: a bar on a terminal, or a line from time to time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from triojam.load.plan import Plan
from triojam.load.result.result import Moment
from triojam.load.result.timeline import line_of

# The plan of the load, and where its last part began and ended.
Show = Callable[[Plan, Moment, Moment], None]


def show_nothing(_plan: Plan, _before: Moment, _now: Moment) -> None:
    """Show no progress."""


def lines(file: TextIO) -> Show:
    """Return a function that prints a line for each part of a load."""

    def show(plan: Plan, before: Moment, now: Moment) -> None:
        print(line_of(before, now, plan), file=file, flush=True)

    return show


@contextmanager
def bar(console: Console) -> Iterator[Show]:
    """Yield a function that shows the progress, and that only on a terminal."""
    if not console.is_terminal:
        yield show_nothing
        return
    bar_width = min(20, console.width // 8)
    columns = (BarColumn(bar_width), TextColumn("{task.description}"))
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as display:
        task = display.add_task("")

        def show(plan: Plan, before: Moment, now: Moment) -> None:
            if plan.requests is None:
                total, done = plan.warm_up + plan.seconds, now.seconds
            else:
                total, done = float(plan.requests), float(now.settled + now.failed)
            text, _, _ = line_of(before, now, plan).partition("  longest")  # no room for it
            text = fitting(text, console.width - bar_width - 1)
            display.update(task, total=total, completed=min(done, total), description=text, refresh=True)

        yield show


def fitting(line: str, width: int) -> str:
    """Leave out the last words of a line that is too long: half a number would be a wrong one."""
    while len(line) > width and "  " in line:
        line = line.rpartition("  ")[0]
    return line
