"""socketserver: a thread for each client, a file object for its lines."""

import socketserver
import sys

from benchmarks.peers.clock import LONGEST_LINE, answer, is_request


class Handler(socketserver.StreamRequestHandler):
    """Reads lines until a wrong line or the end of the connection."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer one client."""
        try:
            while is_request(self.rfile.readline(LONGEST_LINE + 1)):
                self.wfile.write(answer())
        except ConnectionError:
            pass


class Server(socketserver.ThreadingTCPServer):
    """Daemon threads, and a backlog large enough for a benchmark."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        server.serve_forever()
