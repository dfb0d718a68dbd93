"""A stand-in for systemd that receives the messages of a service."""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import trio

from tests.helpers.servers import PATIENCE


class Told:
    """The messages of a service, in order.

    address: for NOTIFY_SOCKET.
    """

    def __init__(self, sock: trio.socket.SocketType, address: str) -> None:
        self.address = address
        self._socket = sock

    @classmethod
    @contextmanager
    def at(cls, path: Path) -> Iterator[Self]:
        """Listen at a path."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            plain = socket.socket(fileno=sock.detach())
            plain.bind(str(path))
            with trio.socket.from_stdlib_socket(plain) as bound:
                yield cls(bound, str(path))

    async def next(self) -> dict[str, str]:
        """Return the assignments of the next message."""
        with trio.fail_after(PATIENCE):
            message = await self._socket.recv(4096)
        return dict(line.split("=", 1) for line in message.decode().split("\n"))

    async def until(self, name: str) -> dict[str, str]:
        """Return the next message that assigns to `name`."""
        while name not in (message := await self.next()):
            pass
        return message

    def forget(self) -> None:
        """Drop all messages so far."""
        while self._pending():
            os.read(self._socket.fileno(), 4096)

    def nothing_more(self) -> bool:
        """Whether no unread message has come."""
        return not self._pending()

    def _pending(self) -> bool:
        return bool(select.select([self._socket.fileno()], [], [], 0)[0])
