"""What tests do to sockets."""

import struct
from typing import Protocol

import trio

# SO_LINGER with a timeout of 0 seconds: close() sends RST (socket(7)).
_LINGER = struct.pack("ii", 1, 0)


class HasOptions(Protocol):
    """A socket, or a Trio stream on one."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """Set an option."""


def reset_on_close(sock: HasOptions) -> None:
    """Make close() reset the connection."""
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, _LINGER)
