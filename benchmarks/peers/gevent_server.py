"""gevent: blocking code in a greenlet for each client."""

import socket
import sys

from gevent.server import StreamServer

from benchmarks.peers.clock import LONGEST_LINE, answer, is_request


def handle(client: socket.socket, _address: tuple[str, int]) -> None:
    """Answer one client; the server closes the socket afterwards."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        with client.makefile("rb") as lines:
            while is_request(lines.readline(LONGEST_LINE + 1)):
                client.sendall(answer())
    except ConnectionError:
        pass


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), handle, backlog=1024).serve_forever()
