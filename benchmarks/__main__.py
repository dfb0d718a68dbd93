"""The command line: ``python -m benchmarks``, ``... cost``, ``... clients`` and ``... smoke``."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cyclopts import App

from benchmarks.clients.cases import chosen as chosen_cases
from benchmarks.clients.comparison import compare_clients
from benchmarks.comparison import compare
from benchmarks.cost import price
from benchmarks.process import CLIENT_CORE, SERVER_CORE, end_on_sigterm, raise_file_limit
from benchmarks.registry import MissingError, chosen
from benchmarks.rounds import Plan
from benchmarks.shapes import chosen as chosen_shapes
from benchmarks.smoke import smoke as run_smoke

OUT = Path("benchmark-results")
app = App(name="benchmarks", help="Compare triojam with other servers of its protocol.")


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    raise_file_limit()
    end_on_sigterm()
    if SERVER_CORE == CLIENT_CORE:
        print("only one core: server and client share it, so the numbers are not reliable")
    with tempfile.TemporaryDirectory(prefix="triojam-benchmarks-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@app.default
def run(
    *,
    rounds: int = 5,
    seconds: float = 2.0,
    retries: int = 2,
    peers: str = "",
    shapes: str = "",
    out: Path = OUT,
) -> int:
    """Compare triojam with its peers: a table, a JSON file and a plot for each shape.

    Parameters
    ----------
    rounds
        Number of measurements of every server under every shape.
    seconds
        Duration of each measurement, without the warm-up.
    retries
        Number of repetitions of a measurement that other programs disturbed.
    peers
        Names separated by commas, such as trio,go,redis; default: all.
    shapes
        Names separated by commas, such as fifty,pipelined,idle; default: all.
    out
        Folder for the results.
    """
    with _workplace() as build:
        return compare(chosen(peers), chosen_shapes(shapes), Plan(rounds, seconds, retries), out, build)


@app.command
def cost(
    *,
    rounds: int = 5,
    seconds: float = 3.0,
    retries: int = 2,
    shapes: str = "fifty,pipelined,connect-twenty",
    out: Path = OUT,
) -> int:
    """Compare triojam with itself: metrics off, on, scraped every second, and with admission."""
    with _workplace() as build:
        return price(chosen_shapes(shapes), Plan(rounds, seconds, retries), out, build)


@app.command
def clients(
    *,
    rounds: int = 5,
    seconds: float = 3.0,
    retries: int = 2,
    cases: str = "",
    out: Path = OUT,
    page: Path | None = None,
) -> int:
    """Compare `triojam load` with the client in C: the same load on servers with known latencies.

    Parameters
    ----------
    rounds
        Number of measurements of every case by each client.
    seconds
        Duration of each measurement; the stalls need whole seconds.
    retries
        Number of repetitions of a measurement that other programs disturbed.
    cases
        Names separated by commas, such as closed-1,open-20ms; default: all.
    out
        Folder for the results.
    page
        Page whose table between the two markers is replaced, such as docs/performance.md.
    """
    with _workplace() as build:
        return compare_clients(chosen_cases(cases), Plan(rounds, seconds, retries), out, page, build)


@app.command
def smoke(*, seconds: float = 0.1, peers: str = "", shapes: str = "") -> int:
    """Run every shape on every peer for a short time; fail if an answer is wrong or missing."""
    with _workplace() as build:
        return run_smoke(chosen(peers), chosen_shapes(shapes), seconds, build)


if __name__ == "__main__":
    try:
        sys.exit(min(app(result_action="return_value") or 0, 1))
    except MissingError as missing:
        sys.exit(f"cannot run: {missing}")
    except KeyboardInterrupt:
        sys.exit(130)
