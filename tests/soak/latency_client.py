"""A good client in a separate process, so that only the server makes it wait.

`python -m tests.soak.latency_client HOST PORT SECONDS` sends a request every 50 ms, in turns on an open
connection and on a new one, and prints the latencies in seconds as JSON.
"""

import json
import socket
import sys
import time

from tests.helpers.sockets import Address, ask

INTERVAL = 0.05
PATIENCE = 10.0
SOURCE = "127.0.1.250"


def main(host: str, port: str, seconds: str) -> int:
    """Send requests until the time is over; the exit status is 1 if an answer is missing."""
    address = (host, int(port))
    kept: list[float] = []
    fresh: list[float] = []
    due = time.monotonic()
    ends = due + float(seconds)
    with _connected(address) as connection:
        while due < ends:
            if len(kept) > len(fresh):
                began = time.perf_counter()
                with _connected(address) as other:
                    _ask(other)
                    fresh.append(time.perf_counter() - began)
            else:
                kept.append(_ask(connection))
            due += INTERVAL
            time.sleep(max(due - time.monotonic(), 0))
    sys.stdout.write(json.dumps({"kept": kept, "fresh": fresh}))
    return 0


def _connected(address: Address) -> socket.socket:
    return socket.create_connection(address, PATIENCE, source_address=(SOURCE, 0))


def _ask(connection: socket.socket) -> float:
    began = time.perf_counter()
    if not ask(connection):
        raise SystemExit("the answer is not a time")
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
