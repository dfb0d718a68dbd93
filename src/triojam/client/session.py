"""A client's connection to a time server, and the error for each reason why there is no answer.

An answer carries whole seconds, and no date. So one answer gives the offset between two clocks to half a
second and half the round trip, and only within twelve hours either way.
"""

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import tzinfo
from ipaddress import IPv6Address
from typing import Self

import trio

from triojam.client.time_of_day import fold, format_second, second_of_day
from triojam.core.addresses import format_address
from triojam.core.protocol import REQUEST, SHOWN_CHARACTERS, printable, read_jam
from triojam.errors import leaves

DEFAULT_PORT = 45000

# Longer than any answer of the protocol.
_LONGEST_ANSWER = 512
_UNMASK_SECONDS = 0.5
# The first two bytes of a TLS record: an alert or a handshake (RFC 8446, section 5.1).
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")


class AskError(Exception):
    """A server gave no time; the text says why. Each subclass is one kind of reason."""


class UnreachableError(AskError):
    """No connection could be opened."""


class SilentError(AskError):
    """No complete answer arrived in time."""


class ClosedError(AskError):
    """The connection ended before the answer was complete."""


class RefusedError(AskError):
    """The server answered with an ERROR line."""


class StrangerError(AskError):
    """The server speaks another protocol."""


class WrongTimeError(AskError):
    """The answer is not a time of day, or contradicts earlier answers."""


class UntrustedError(AskError):
    """The certificate is not trusted, or belongs to another host."""


@dataclass(frozen=True, slots=True)
class Target:
    """The address of a server: a host name or an IP address, and a TCP port."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse HOST, HOST:PORT, an IPv6 address, or [IPv6]:PORT.

        Raises ValueError that says what is expected.
        """
        bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", text)
        plain = re.fullmatch(r"([^:\[\]/\s]+)(?::(\d+))?", text)
        if match := bracketed or plain:
            host, port = match[1], int(match[2] or DEFAULT_PORT)
        elif _is_ipv6(text):
            host, port = text, DEFAULT_PORT
        else:
            host, port = "", 0
        if not (host and 0 < port <= 65_535):
            raise ValueError("HOST or HOST:PORT, as in [::1]:45000")
        return cls(host, port)

    def __str__(self) -> str:
        return format_address((self.host, self.port))


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer, and what follows from it. Durations are in seconds.

    time: hh:mm:ss, as the server sent it. offset: how far the server's clock is ahead of this machine's; the
    true offset is within `bound` of it. round_trip: from before the request to after the answer. address: the
    server's IP address and port.
    """

    time: str
    offset: float
    bound: float
    round_trip: float
    address: str


class Session:
    """A connection to a time server: it sends requests, and receives seconds of the server's day, in order.

    address: the server's address as text. socket_address: the same as a socket address. stream: the bytes.
    """

    def __init__(self, stream: trio.abc.Stream, socket_address: tuple[str | int, ...]) -> None:
        self.socket_address = socket_address
        self.address = format_address(socket_address)
        self.stream = stream
        self._received = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_args: object) -> None:
        # An orderly end of TLS would wait for the server.
        await trio.aclose_forcefully(self.stream)

    async def ask(
        self, *, patience: float, zone: tzinfo | None = None, now: Callable[[], float] = time.time
    ) -> Answer:
        """Ask for the time; `triojam.client.ask.ask` describes the parameters. Raises AskError."""
        asked, began = now(), time.perf_counter()
        await self.send()
        try:
            second = await self.receive(patience)
        except SilentError:
            await self.unmask()
            raise
        round_trip = time.perf_counter() - began
        offset = second + 0.5 - (second_of_day(asked, zone) + round_trip / 2)
        return Answer(format_second(second), fold(offset), 0.5 + round_trip / 2, round_trip, self.address)

    async def send(self, data: bytes = REQUEST) -> None:
        """Send one request. Raises AskError."""
        with _as_ask_errors():
            await self.stream.send_all(data)

    async def receive(self, patience: float) -> int:
        """Return the second of the day in the next answer. Raises AskError."""
        with trio.move_on_after(patience):
            while b"\n" not in self._received:
                if len(self._received) > _LONGEST_ANSWER:
                    return read_answer(self._received)
                with _as_ask_errors():
                    data = await self.stream.receive_some()
                if not data:
                    raise ClosedError(_unfinished(self._received, "closed the connection"))
                self._received += data
            line, feed, self._received = self._received.partition(b"\n")
            return read_answer(line + feed)
        raise SilentError(_unfinished(self._received, f"said nothing for {patience:g} s"))

    async def unmask(self) -> None:
        """Check whether a silent server is waiting for the rest of an HTTP request. Raises StrangerError."""
        with suppress(SilentError, ClosedError):
            await self.send(b"\r\n")
            await self.receive(_UNMASK_SECONDS)


async def connect(
    target: Target, *, patience: float = 5.0, tls: ssl.SSLContext | None = None, name: str | None = None
) -> Session:
    """Connect to one of the host's addresses, as in RFC 8305, with TLS if `tls` is given.

    name: the host in the certificate; None = the target's.

    Raises AskError.
    """
    with trio.move_on_after(patience):
        try:
            tcp = await trio.open_tcp_stream(target.host, target.port)
        except (OSError, UnicodeError) as exc:  # a name with a label of 64 characters has no encoding
            raise UnreachableError(_reasons(exc)) from exc
        try:
            with _as_ask_errors():
                address = tcp.socket.getpeername()
            return Session(await over_tls(tcp, tls, name or target.host), address)
        except BaseException:
            await trio.aclose_forcefully(tcp)
            raise
    raise UnreachableError(f"no connection within {patience:g} s")


async def over_tls(tcp: trio.SocketStream, tls: ssl.SSLContext | None, host: str) -> trio.abc.Stream:
    """Shake hands over a TCP connection to this host; return it as it is without `tls`. Raises AskError."""
    if tls is None:
        return tcp
    stream = trio.SSLStream(tcp, tls, server_hostname=certified_name(host), https_compatible=True)
    with _as_ask_errors():
        await stream.do_handshake()
    return stream


def read_answer(line: bytes) -> int:
    """Return the second of the day in an answer line. Raises AskError."""
    if (second := read_jam(line)) is not None:
        return second
    if re.fullmatch(rb"JAM \d\d:\d\d:\d\d\r\n", line):
        raise WrongTimeError(f"answered with {_shown(line)}, which is no time of day")
    if line.startswith(b"ERROR "):
        raise RefusedError(f"answered with {_shown(line)}")
    if line.startswith(b"HTTP/"):
        raise StrangerError("speaks HTTP, not TIME: is it the metrics port?")
    if line[:2] in _TLS_RECORDS:
        raise StrangerError("speaks TLS: try it with --tls")
    raise StrangerError(f"answered with something else: {_shown(line)}")


def certified_name(host: str) -> str:
    """Return the name to send and to verify: without the dot of the root (RFC 6066, 3), without a zone."""
    return host.partition("%")[0].removesuffix(".")


def _is_ipv6(text: str) -> bool:
    try:
        return bool(IPv6Address(text))
    except ValueError:
        return False


@contextmanager
def _as_ask_errors() -> Iterator[None]:
    """Turn the errors of a broken connection into AskErrors."""
    try:
        yield
    except (OSError, trio.BrokenResourceError) as exc:
        cause = exc.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise UntrustedError(f"its certificate is not trusted: {cause.verify_message}") from exc
        if isinstance(cause, ssl.SSLError):
            raise StrangerError("does not speak TLS, or only an unsafe version") from exc
        raise ClosedError("reset the connection") from exc


def _unfinished(received: bytes, what: str) -> str:
    return f"{what} after part of an answer, {_shown(received)}" if received else f"{what} without an answer"


def _shown(received: bytes) -> str:
    line = received.removesuffix(b"\r\n")
    more = "…" if len(line) > SHOWN_CHARACTERS else ""
    return f"'{printable(line)}{more}'"


def _reasons(exc: BaseException) -> str:
    """Say why each of the host's addresses failed; Trio's own text is only a summary."""
    return ", ".join(dict.fromkeys(map(_reason, leaves(exc.__cause__ or exc))))


def _reason(exc: BaseException) -> str:
    text = str(exc)
    if isinstance(exc, OSError) and exc.errno:  # Trio's text would have the address in it
        text = (exc.strerror if isinstance(exc, socket.gaierror) else None) or os.strerror(exc.errno)
    return text[:1].lower() + text[1:]
