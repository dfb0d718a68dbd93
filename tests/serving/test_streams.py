"""The client's stream over TCP."""

import socket

import pytest
import trio

from tests.helpers.servers import raw, receive_all, receive_exactly
from triojam.core.addresses import format_address
from triojam.serving.listeners import prepare
from triojam.serving.streams import LINGER_BYTES, TcpStream


async def stream_pair() -> tuple[trio.SocketStream, TcpStream]:
    """Make the client's and the server's end of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = await trio.open_tcp_stream(*listening.getsockname())
        sock, _ = listening.accept()
    prepare(sock)
    return client, TcpStream(sock)


async def test_receive_now_returns_what_has_arrived() -> None:
    """`receive_now` returns bytes that have arrived, None if there are none, and b"" at the end."""
    client, server = await stream_pair()
    async with client, server:
        assert server.receive_now(100) is None
        await client.send_all(b"TIME\r\n")
        await server.wait_readable()
        assert server.receive_now(4) == b"TIME"
        assert server.receive_now(100) == b"\r\n"
        await client.send_eof()
        await server.wait_readable()
        assert server.receive_now(100) == b""


async def test_taken_counts_the_bytes_that_the_kernel_took() -> None:
    """During a send, and after a flush, `taken` is exactly what the client can receive."""
    client, server = await stream_pair()
    async with client, server:
        data = bytes(range(256)) * 80_000
        assert not server.send_now(data)
        before = server.taken
        assert 0 < before < len(data)
        assert not server.flush_now()
        received = await receive_exactly(client, server.taken)
        with trio.move_on_after(0.05):
            await server.flush()
        assert server.taken >= before
        received += await receive_exactly(client, server.taken - len(received))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.flush)
            received += await receive_exactly(client, len(data) - len(received))
        assert server.taken == len(data)
        assert server.flush_now()
    assert received == data


async def test_finish_delivers_the_last_answer_although_the_client_still_sends() -> None:
    """The client gets the last answer and the end of the stream; its own bytes are dropped."""
    client, server = await stream_pair()
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(LINGER_BYTES))
        assert server.send_now(b"the last answer")
        with trio.fail_after(5):
            await server.finish()
        server.close()
        assert await receive_all(client) == b"the last answer"


async def test_a_client_sees_the_reset() -> None:
    """A close with `reset` is a reset for the client, and a second close does nothing."""
    client, server = await stream_pair()
    async with client:
        server.close(reset=True)
        server.close(reset=True)
        await server.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()


async def test_a_broken_connection_raises_broken_resource_error() -> None:
    """After a reset, every call raises BrokenResourceError; a client that is gone has no address."""
    client, server = await stream_pair()
    address = server.peer()
    assert address is not None
    assert format_address(address) == format_address(raw(client).socket.getsockname())
    async with server:
        TcpStream(socket.socket(fileno=client.socket.detach())).close(reset=True)
        await server.wait_readable()
        with pytest.raises(trio.BrokenResourceError):
            server.receive_now(1)
        with pytest.raises(trio.BrokenResourceError):
            server.send_now(b"x")
        assert server.taken == 0
    gone = TcpStream(socket.socket())
    assert gone.peer() is None
    gone.close()
