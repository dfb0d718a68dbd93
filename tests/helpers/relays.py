"""Clients behind a proxy: connections that begin with a PROXY header."""

import socket

import trio

from tests.helpers.proxy_headers import header_for
from tests.helpers.servers import ClientEnd, Running, TlsClient, receive_exactly, trusting, until

PROXY = "127.0.0.1"


def address_of(server: Running) -> tuple[str, int]:
    """Return the address that clients of this server use."""
    assert server.server is not None
    return (server.server.tls_addresses if server.tls else server.server.addresses)[0]


def connect_now(server: Running, data: bytes = b"", host: str = PROXY) -> trio.SocketStream:
    """Connect from `host` and send, before any task of the server runs: at the accept, `data` is there."""
    sock = socket.create_connection(address_of(server), source_address=(host, 0))
    sock.sendall(data)
    sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def send_now(client: trio.SocketStream, data: bytes) -> None:
    """Send before any task of the server runs."""
    assert client.socket._sock.send(data) == len(data)  # type: ignore[attr-defined]  # not Trio's send


async def shake_hands(tcp: trio.SocketStream) -> TlsClient:
    """Put TLS over a stream. Raises trio.BrokenResourceError if the server ends the connection before."""
    client = TlsClient(tcp, trusting())
    try:
        await client.tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(tcp)
        raise
    return client


async def connect_relayed(server: Running, header: bytes, *, late: bool = False) -> ClientEnd:
    """Open a connection from the proxy whose header is there at the accept, or comes later in two pieces.

    Raises trio.BrokenResourceError if the server ends the connection before the TLS handshake.
    """
    before = server.counters.connections
    tcp = connect_now(server, b"" if late else header)
    if late:
        for piece in (b"", header[:7], header[7:]):
            await until(lambda: server.counters.connections > before)
            await trio.testing.wait_all_tasks_blocked()
            await tcp.send_all(piece)
    return await shake_hands(tcp) if server.tls else tcp


def relay(server: Running, host: str, *, late: bool = False, version: int = 2) -> None:
    """Let all further clients of this server be clients of the proxy with this address."""
    relay_header(server, header_for(host, version=version), late=late)


def relay_header(server: Running, header: bytes, *, late: bool = False) -> None:
    """Let the proxy send this header on all further connections."""

    async def connect() -> ClientEnd:
        return await connect_relayed(server, header, late=late)

    server.open = connect


async def is_closed_without_reply(client: trio.abc.ReceiveStream) -> bool:
    """Whether the server closes a connection and sends nothing."""
    try:
        return await receive_exactly(client, 1) == b""
    except trio.BrokenResourceError:
        return True
