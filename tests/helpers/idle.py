"""What idle connections cost: python -m tests.helpers.idle [--connections 10000].

Starts a server, holds that many connections, asks each, lets all be idle, and asks each again. Prints how
many answered and the server's memory per connection.
"""

# ruff: noqa: T201  # what a script says, it prints

import argparse
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

# Besides the connections, a process has its log, its listeners and its libraries' descriptors.
SPARE_DESCRIPTORS = 128
PATIENCE = 60.0
JAM_BYTES = len(b"JAM hh:mm:ss\r\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 if every connection was answered twice."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--connections", type=int, default=10_000)
    connections: int = arguments.parse_args(argv).connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < connections + SPARE_DESCRIPTORS:
        print(f"the limit of {hard} file descriptors is too low for {connections} connections")
        return 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, connections + SPARE_DESCRIPTORS), hard))
    with ExitStack() as stack:
        server, address = _start(stack, connections)
        before = memory(server.pid)
        began = time.monotonic()
        clients = [
            stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(connections)
        ]
        print(f"connected: {len(clients)} in {time.monotonic() - began:.1f} s")
        first = ask_each(clients)
        held = memory(server.pid)
        second = ask_each(clients)
        print(f"answered: {first} and {second} of {len(clients)}")
        per_connection = (held - before) / max(connections, 1)
        print(f"memory: {before} kB before, {held} kB held, {per_connection:.2f} kB a connection")
    return 0 if first == second == connections else 1


def _start(stack: ExitStack, connections: int) -> tuple[subprocess.Popen[bytes], tuple[str, int]]:
    """Start a server that takes as many connections; it is stopped when the stack is left."""
    command = [
        sys.executable,
        "-m",
        "triojam",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--metrics-port",
        "none",
    ]
    # Not its deadline is the question here, and a slow machine may take longer to open so many.
    command += ["--idle-timeout", "0", "--max-connections", str(connections), "--log-format", "json"]
    server = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE))
    stack.callback(server.kill)
    assert server.stderr is not None
    for line in server.stderr:
        entry = json.loads(line)
        if entry["event"] == "serving":
            host, port = entry["addresses"][0].rsplit(":", 1)
            return server, (host, int(port))
    raise SystemExit("the server did not start")


def ask_each(clients: Sequence[socket.socket]) -> int:
    """Send a request on every connection, then read all answers; how many there were."""
    for client in clients:
        client.sendall(b"TIME\r\n")
    return sum(_is_time(client.recv(JAM_BYTES, socket.MSG_WAITALL)) for client in clients)


def _is_time(answer: bytes) -> bool:
    return len(answer) == JAM_BYTES and answer.startswith(b"JAM ") and answer.endswith(b"\r\n")


def memory(pid: int) -> int:
    """Return how many kB of memory a process has for itself: its proportional set size (proc(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise SystemExit("this kernel does not say how much memory a process has")


if __name__ == "__main__":
    sys.exit(main())
