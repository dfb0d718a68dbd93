"""Where the results of `load` go: the terminal, the files, and the exit status."""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from triojam.cli.console import Console
from triojam.cli.flags.load import usable_cores
from triojam.cli.servers import FAILED, run
from triojam.client.files import check_output, write_whole
from triojam.errors import ConfigurationError, invalid_value
from triojam.load.find import FindRun
from triojam.load.progress import bar, lines
from triojam.load.result import exports, found, text
from triojam.load.result.goals import Goal, broken
from triojam.load.result.result import Result
from triojam.load.run import LoadRun

UNBALANCED = 3
NOT_REACHED = 4


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files for a result. every: the seconds between two lines of progress; None = a bar."""

    json: Path | None = None
    csv: Path | None = None
    hgrm: Path | None = None
    plot: Path | None = None
    every: float | None = None

    def check(self) -> None:
        """Find out before the load, rather than after it. Raises ConfigurationError."""
        if self.plot is not None:
            if self.plot.suffix not in (".svg", ".png"):
                raise invalid_value(str(self.plot), "--plot", "a file name that ends in .svg or .png")
            if importlib.util.find_spec("matplotlib") is None:
                raise ConfigurationError("--plot needs matplotlib: pip install 'triojam[plot]'")
        given: dict[Path, str] = {}
        for option, file in self._files():
            if str(file).startswith("-"):  # a forgotten name would make a file of the next flag
                takes = " or - for standard output" if option == "--json" else "; only --json takes -"
                raise invalid_value(str(file), option, f"a file name{takes}")
            check_output(option, file)
            if (other := given.setdefault(file.absolute(), option)) != option:
                raise invalid_value(str(file), option, f"another file than {other}")

    def show_load(self, job: LoadRun, goals: Sequence[Goal]) -> int:
        """Run a load, show and write its result, and return the exit status."""
        interrupted = self._run(job)
        if (result := job.result) is None:
            return interrupted or FAILED
        print(text.render(result, cores=usable_cores()), file=self._stream, flush=True)
        missed = broken(goals, result)
        for line in missed:
            print(f"triojam: {line}", file=sys.stderr)
        return self._written(partial(self._write, result), interrupted or _status(result, goals, missed))

    def show_search(self, job: FindRun) -> int:
        """Run a search, show and write what it has found, and return the exit status."""
        interrupted = self._run(job)
        if (what := job.found) is None:
            return interrupted or FAILED
        print(found.render(what), file=self._stream, flush=True)
        status = interrupted or (0 if what.search.answer is not None else FAILED)
        return self._written(partial(self._write_found, what), status)

    def _run(self, job: LoadRun | FindRun) -> int:
        """Run a job with its progress; return the exit status of a signal, or 0."""
        if self.every is not None:
            status = run(partial(job.run, lines(self._stream)), job.interrupt)
        else:
            # The bar is for a terminal; a file or a pipe gets the result alone.
            console = Console(stderr=True, force_terminal=None if sys.stdout.isatty() else False)
            with bar(console) as show:
                status = run(partial(job.run, show), job.interrupt)
        if job.failure is not None:
            print(f"triojam: {job.failure}", file=sys.stderr)
        return status

    @property
    def _takes_stdout(self) -> bool:
        """Whether standard output is for JSON alone."""
        return str(self.json) == "-"

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self._takes_stdout else sys.stdout

    def _files(self) -> Iterator[tuple[str, Path]]:
        if self.json is not None and not self._takes_stdout:
            yield "--json", self.json
        for option, file in (("--csv", self.csv), ("--hgrm", self.hgrm), ("--plot", self.plot)):
            if file is not None:
                yield option, file

    def _write(self, result: Result) -> None:
        """Write the files of a load. Raises OSError."""
        self._write_json(exports.as_json(result))
        for file, render in ((self.csv, exports.as_csv), (self.hgrm, exports.as_hgrm)):
            if file is not None:
                write_whole(file, render(result).encode())
        if self.plot is not None:
            from triojam.load.result.plot import save_plot  # noqa: PLC0415  # an extra

            save_plot(result, self.plot)

    def _write_found(self, what: found.Found) -> None:
        """Write the files of a search. Raises OSError."""
        self._write_json(found.as_json(what))
        if self.plot is not None and what.search.trials:
            from triojam.load.result.found_plot import save_plot  # noqa: PLC0415  # an extra

            save_plot(what, self.plot)

    def _write_json(self, content: str) -> None:
        if self._takes_stdout:
            sys.stdout.write(content)
            sys.stdout.flush()
        elif self.json is not None:
            write_whole(self.json, content.encode())

    def _written(self, write: Callable[[], None], status: int) -> int:
        """Write the files, and return the exit status."""
        try:
            write()
        except OSError as exc:
            if exc.filename is None:  # standard output: the caller heeds it, and a reader that has gone
                raise
            print(f"triojam: {exc.filename}: {exc.strerror}", file=sys.stderr)
            return status or FAILED
        return status


def _status(result: Result, goals: Sequence[Goal], missed: Sequence[str]) -> int:
    """Return the exit status of a load. A goal for failed requests says how many may fail."""
    if not result.interrupted and result.faults:
        return UNBALANCED
    if missed:
        return NOT_REACHED
    tolerated = any(goal.quantity == "failed" for goal in goals)
    return 0 if result.complete or tolerated else FAILED
