"""The client's stream."""

import socket
import struct

import pytest
import trio
from trio.testing import check_half_closeable_stream

from tests.support import receive_all
from triojam.streams import TcpStream


async def socket_pair() -> tuple[TcpStream, TcpStream]:
    """Make two connected TCP streams: Unix pairs know neither resets nor the options of TCP."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = trio.socket.socket()
        await client.connect(listener.socket.getsockname())
        server, _ = await listener.socket.accept()
    return TcpStream(client, "client"), TcpStream(server, "server")


async def clogged_socket_pair() -> tuple[TcpStream, TcpStream]:
    """Make a pair of which neither end can send, because the other does not receive."""
    left, right = await socket_pair()
    more_than_fits = bytes(20_000_000)
    for stream in (left, right):
        before = -1
        while before < stream.bytes_sent:  # the kernel enlarges its buffers a few times
            before = stream.bytes_sent
            with trio.move_on_after(0.05):
                await stream.send_all(more_than_fits)
    return left, right


async def test_is_a_half_closeable_stream() -> None:
    """It passes Trio's own checks, with and without a send that blocks."""
    await check_half_closeable_stream(socket_pair, clogged_socket_pair)


async def test_counts_what_the_kernel_took_of_an_interrupted_send() -> None:
    """After a cancelled send, bytes_sent is what the other side can receive, to the byte."""
    left, right = await clogged_socket_pair()
    async with left, right:
        await left.send_eof()
        assert 0 < left.bytes_sent == len(await receive_all(right))


async def test_reset() -> None:
    """A reset is one for the other side, too, and a second one does nothing."""
    left, right = await socket_pair()
    async with left, right:
        left.reset()
        left.reset()
        with pytest.raises(trio.BrokenResourceError):
            await right.receive_some()


async def test_a_broken_connection() -> None:
    """Sending to a client that has reset the connection is a broken resource, not an OSError."""
    left, right = await socket_pair()
    async with left, right:
        linger = struct.pack("ii", 1, 0)
        right._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await right.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await left.send_all(b"x")
