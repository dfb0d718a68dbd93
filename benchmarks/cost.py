"""The cost of monitoring and admission: triojam without a metrics listener, with one, and with more."""

import contextlib
import http.client
import json
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.comparison import write
from benchmarks.fleet import Server, all_up
from benchmarks.load import build_client
from benchmarks.registry import Peer, triojam
from benchmarks.rounds import Plan, play
from benchmarks.shapes import Shape
from benchmarks.summary import rows, table

OFF, SCRAPED, WATCHED = "off", "scraped", "watched"
PAGES = 10
# Every limit is on and checked, but never reached.
ADMISSION = (
    "--allow=127.0.0.0/8",
    "--deny=192.0.2.0/24,2001:db8::/32",
    "--connections-per-source=100000",
    "--rate-per-source=1000000000",
    "--burst-per-source=1000000000",
)
VARIANTS = (
    Peer(OFF, "metrics off", triojam(metrics=False)),
    Peer("on", "metrics on", triojam()),
    Peer(SCRAPED, "metrics scraped every second", triojam()),
    Peer("admission", "metrics on, admission by every rule", triojam(*ADMISSION)),
    Peer(WATCHED, f"{PAGES} live pages open", triojam()),
)


class Readers:
    """Threads that use the metrics listener of a server only while that server is measured.

    scrapes: the size of each scrape. polls: the size of each answer to a page.
    """

    def __init__(self) -> None:
        self.scrapes: list[int] = []
        self.polls: list[int] = []
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @contextlib.contextmanager
    def beside(self, server: Server) -> Iterator[None]:
        """Scrape, or poll as pages do, as the variant of the server requires."""
        stop = threading.Event()
        work = {SCRAPED: [self._scrape], WATCHED: [self._watch] * PAGES}.get(server.peer.name, [])
        address = f"http://127.0.0.1:{server.metrics_port}"
        threads = [threading.Thread(target=each, args=(address, stop), daemon=True) for each in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(6)

    def _scrape(self, address: str, stop: threading.Event) -> None:
        while not stop.wait(1.0):
            with contextlib.suppress(OSError), self._opener.open(f"{address}/metrics", timeout=5) as page:
                self.scrapes.append(len(page.read()))

    def _watch(self, address: str, stop: threading.Event) -> None:
        """Poll over one connection, as a page does."""
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=5)
        since = ""
        while not stop.wait(1.0):
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", f"/status{since}")
                body = connection.getresponse().read()
                self.polls.append(len(body))
                if rows := json.loads(body)["history"]["rows"]:
                    since = f"?since={rows[-1][0]}"
        connection.close()


def price(shapes: Sequence[Shape], plan: Plan, out: Path, build: Path) -> int:
    """Run the variants interleaved; return 1 if one of them did not run."""
    client = build_client(build)
    timed = [shape for shape in shapes if shape.mode != "idle"]
    titles = {variant.name: variant.title for variant in VARIANTS}
    skipped: dict[str, str] = {}
    readers = Readers()
    with all_up(VARIANTS, build, skipped) as servers:
        if skipped:
            return 1
        samples = play(client, servers, timed, plan, readers.beside)
    summed = {shape.name: rows(samples[shape.name], OFF, inverse=True) for shape in timed}
    parts = [table(shape, summed[shape.name], titles, OFF, inverse=True) for shape in timed]
    scrapes, polls = len(readers.scrapes), len(readers.polls)
    read = f"{scrapes} scrapes of {max(readers.scrapes, default=0):,} bytes at most; {polls} polls of pages."
    more: dict[str, object] = {"scrapes": scrapes, "polls": polls, "titles": titles}
    write(out, "cost", samples, summed, more, "\n".join([*parts, read]))
    return 0 if scrapes and polls else 1
