"""A good client in a process of its own, so that nothing but the server makes it wait.

`python -m tests.soak.good HOST PORT SECONDS`: asks every 50 ms, by turns on a connection that it keeps and
on a new one, and prints the latencies as JSON, in seconds.
"""

import json
import socket
import sys
import time

INTERVAL = 0.05
PATIENCE = 10.0
SOURCE = "127.0.1.250"
JAM_SIZE = len(b"JAM hh:mm:ss\r\n")


def main(host: str, port: str, seconds: str) -> int:
    """Ask until the time is over; the exit status is 1 if an answer did not come."""
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


def _connected(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, PATIENCE, source_address=(SOURCE, 0))


def _ask(connection: socket.socket) -> float:
    began = time.perf_counter()
    connection.sendall(b"TIME\r\n")
    answer = connection.recv(JAM_SIZE, socket.MSG_WAITALL)
    if len(answer) != JAM_SIZE or not answer.startswith(b"JAM "):
        raise SystemExit(f"answered {answer!r}")
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
