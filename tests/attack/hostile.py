"""The hostile clients: python -m tests.attack.hostile KIND HOST PORT [--tls].

They run in a separate process until it is killed. Each client is a thread on a blocking socket.
"""

import argparse
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tests.helpers.sockets import raise_descriptor_limit, reset_on_close

CLIENTS = 50
PATIENCE = 60.0
NINE_BAD_LINES = b"\n" * 9 + b"TIME\r\n"
HELLO_GROUPS = {"ffdhe_hellos": "ffdhe8192", "elliptic_hellos": "P-256"}
HELD_BY_EACH = 40
# The measured clients run on the same core, before the attackers.
NICE = 10


class Target:
    """The address to attack, with or without TLS."""

    def __init__(self, address: tuple[str, int], *, tls: bool) -> None:
        self.address = address
        self._context = ssl.create_default_context() if tls else None
        if self._context is not None:
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    def plain(self, *, receive_buffer: int = 0) -> socket.socket:
        """Connect over TCP."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect(self.address)
        return sock

    def connect(self, *, receive_buffer: int = 0) -> socket.socket:
        """Connect, over TLS if the target uses it."""
        sock = self.plain(receive_buffer=receive_buffer)
        return self._context.wrap_socket(sock) if self._context is not None else sock


def _read_all(sock: socket.socket) -> None:
    with suppress(OSError):
        while sock.recv(65_536):
            pass


def _send_and_read(target: Target, first: bytes, data: bytes) -> None:
    """Send without end, and read; over TLS in turns, because two threads cannot share a TLS object."""
    with target.connect() as sock:
        sock.sendall(first)
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(0.05)
            while True:
                with suppress(TimeoutError):
                    sock.sendall(data[:2048])
                with suppress(TimeoutError):
                    sock.recv(65_536)
        threading.Thread(target=_read_all, args=(sock,), daemon=True).start()
        while True:
            sock.sendall(data)


def nine_bad_lines(target: Target) -> None:
    """Send nine bad lines and a good one without end, and read every answer."""
    _send_and_read(target, b"", NINE_BAD_LINES * 1000)


def nine_bad_lines_deaf(target: Target) -> None:
    """Send the same, and read no answer."""
    with target.connect(receive_buffer=4096) as sock:
        while True:
            sock.sendall(NINE_BAD_LINES * 100)


def half_bad_lines(target: Target) -> None:
    """Send a bad line for each good one, and read every answer; the error budget never runs out."""
    _send_and_read(target, b"", b"\nTIME\r\n" * 2000)


def pipelined(target: Target) -> None:
    """Send requests without end, and read every answer."""
    _send_and_read(target, b"", b"TIME\r\n" * 3000)


def pipelined_in_tasks(target: Target) -> None:
    """Send the same after a bad line, which gives the client its own task."""
    _send_and_read(target, b"x\r\n", b"TIME\r\n" * 3000)


def pipelined_deaf(target: Target) -> None:
    """Send requests without end, and read no answer."""
    with target.connect(receive_buffer=4096) as sock:
        while True:
            sock.sendall(b"TIME\r\n" * 300)


def slowloris(target: Target) -> None:
    """Hold forty connections with an unfinished line each, and replace the closed ones."""
    held: list[socket.socket] = []
    while True:
        while len(held) < HELD_BY_EACH:
            sock = target.connect()
            sock.sendall(b"TI")
            held.append(sock)
        for sock in held[:]:
            sock.settimeout(0.01)
            try:
                sock.recv(100)
            except TimeoutError:
                continue
            except OSError:
                pass
            held.remove(sock)
            sock.close()


def bytewise(target: Target) -> None:
    """Send one byte in each segment, as fast as possible."""
    with target.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not isinstance(sock, ssl.SSLSocket):
            threading.Thread(target=_read_all, args=(sock,), daemon=True).start()
        for number in range(1_000_000):
            sock.send(b"TIME\r\n"[number % 6 : number % 6 + 1])
            if isinstance(sock, ssl.SSLSocket) and number % 6 == 5:  # the last byte of a line
                sock.recv(100)


def come_and_go(target: Target) -> None:
    """Connect and close."""
    target.plain().close()


def silent_crowd(target: Target) -> None:
    """Open forty connections that send nothing, then close all of them."""
    held = [target.plain() for _ in range(HELD_BY_EACH)]
    for sock in held:
        sock.close()


def resets(target: Target) -> None:
    """Connect, send a request, and reset before the answer is read."""
    with target.connect() as sock:
        sock.sendall(b"TIME\r\nTI")
        reset_on_close(sock)


def long_bad_lines(target: Target) -> None:
    """Send bad lines of the greatest length until the error budget is used up."""
    with target.connect() as sock:
        sock.sendall((b"x" * 510 + b"\r\n") * 40)
        _read_all(sock)


def _replay(target: Target, kind: str) -> None:
    hello = _hello(HELLO_GROUPS[kind])
    while True:
        with suppress(OSError), target.plain() as sock:
            sock.sendall(hello)
            sock.recv(65_536)


def ffdhe_hellos(target: Target) -> None:
    """Replay a recorded TLS hello that offers only the most expensive group."""
    _replay(target, "ffdhe_hellos")


def elliptic_hellos(target: Target) -> None:
    """Replay a recorded TLS hello that the server accepts, and send nothing more."""
    _replay(target, "elliptic_hellos")


_hellos: dict[str, bytes] = {}
_recording = threading.Lock()


def _hello(group: str) -> bytes:
    with _recording:
        if group not in _hellos:
            _hellos[group] = record_hello(group)
        return _hellos[group]


def record_hello(group: str) -> bytes:
    """Return the first flight of the openssl client when it offers only one group."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = f"127.0.0.1:{listening.getsockname()[1]}"
        command = ["openssl", "s_client", "-tls1_3", "-groups", group, "-connect", where]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as client:
            listening.settimeout(PATIENCE)
            accepted, _ = listening.accept()
            with accepted:
                hello = accepted.recv(65_536)
            client.wait(PATIENCE)
    return hello


PLAIN: tuple[Callable[[Target], None], ...] = (
    nine_bad_lines, nine_bad_lines_deaf, half_bad_lines, pipelined, pipelined_in_tasks, pipelined_deaf,
    slowloris, bytewise, come_and_go, silent_crowd, resets, long_bad_lines,
)  # fmt: skip
OVER_TLS = (*PLAIN, ffdhe_hellos, elliptic_hellos)
KINDS = {kind.__name__: kind for kind in OVER_TLS}


def _again_and_again(kind: Callable[[Target], None], target: Target) -> None:
    while True:
        try:
            kind(target)
        except OSError:  # the server refused, closed or reset it, as it should
            time.sleep(0.01)


def main() -> None:
    """Run the command line; it ends when it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    os.nice(NICE)
    raise_descriptor_limit()
    target = Target((options.host, options.port), tls=options.tls)
    threads = [
        threading.Thread(target=_again_and_again, args=(KINDS[options.kind], target), daemon=True)
        for _ in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    print("attacking", flush=True)  # noqa: T201  # `measure` waits for this line
    threads[0].join()


if __name__ == "__main__":
    main()
