"""What tests do to sockets, and what clients on plain sockets have in common."""

import resource
import socket
import struct
from typing import Protocol

Address = tuple[str, int]

JAM_BYTES = len(b"JAM hh:mm:ss\r\n")
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with 0 seconds: close() sends RST (socket(7))


def ask(client: socket.socket) -> bool:
    """Send a request, and return whether the answer has the form of a time."""
    client.sendall(b"TIME\r\n")
    return receives_time(client)


def receives_time(client: socket.socket) -> bool:
    """Receive an answer, and return whether it has the form of a time."""
    answer = b""
    while len(answer) < JAM_BYTES and (data := client.recv(JAM_BYTES - len(answer))):
        answer += data
    return len(answer) == JAM_BYTES and answer.startswith(b"JAM ") and answer.endswith(b"\r\n")


class HasOptions(Protocol):
    """A socket, or a Trio stream on one."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """Set an option."""


def reset_on_close(client: HasOptions) -> None:
    """Make the kernel reset the connection when it is closed."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
