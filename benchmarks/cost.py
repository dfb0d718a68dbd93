"""The price of monitoring: triojam without a metrics listener, with one, and with one in use."""

import contextlib
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.comparison import write
from benchmarks.fleet import all_up
from benchmarks.load import build_client
from benchmarks.registry import Peer, triojam
from benchmarks.rounds import Plan, play
from benchmarks.shapes import Shape
from benchmarks.summary import rows, table

OFF = "off"
SCRAPED = "scraped"
VARIANTS = (
    Peer(OFF, "metrics off", triojam(metrics=False)),
    Peer("on", "metrics on", triojam()),
    Peer(SCRAPED, "metrics scraped every second", triojam()),
)


@contextlib.contextmanager
def scraping(port: int, pause: float) -> Iterator[list[int]]:
    """Fetch the metrics again and again; gives the sizes of what was fetched."""
    stop = threading.Event()
    sizes: list[int] = []

    def scrape() -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not stop.wait(pause):
            with (
                contextlib.suppress(OSError),
                opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as page,
            ):
                sizes.append(len(page.read()))

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join(6)


def price(shapes: Sequence[Shape], plan: Plan, out: Path, build: Path) -> int:
    """Run the three variants interleaved; returns 1 if one of them did not run."""
    client = build_client(build)
    timed = [shape for shape in shapes if shape.mode != "idle"]
    titles = {variant.name: variant.title for variant in VARIANTS}
    skipped: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(all_up(VARIANTS, build, skipped))
        ports = [s.metrics_port for s in servers if s.peer.name == SCRAPED and s.metrics_port]
        if skipped or not ports:
            return 1
        sizes = stack.enter_context(scraping(ports[0], 1.0))
        samples = play(client, servers, timed, plan)
    summed = {shape.name: rows(samples[shape.name], OFF, inverse=True) for shape in timed}
    parts = [table(shape, summed[shape.name], titles, OFF, inverse=True) for shape in timed]
    scrapes = f"{len(sizes)} scrapes of {max(sizes, default=0):,} bytes at most."
    more: dict[str, object] = {"scrapes": len(sizes), "titles": titles}
    write(out, "cost", samples, summed, more, "\n".join([*parts, scrapes]))
    return 0 if sizes else 1
