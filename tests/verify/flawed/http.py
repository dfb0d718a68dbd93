"""It speaks HTTP."""

import sys
from datetime import datetime
from socket import create_server
from threading import Thread


def serve(client):
    with client:
        client.recv(4096)
        now = datetime.now().strftime("%H:%M:%S").encode()
        client.sendall(b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n" + now)


def safely(client):
    try:
        serve(client)
    except OSError:
        pass


with create_server(("127.0.0.1", int(sys.argv[1])), backlog=128) as server:
    while True:
        client, _ = server.accept()
        Thread(target=safely, args=[client], daemon=True).start()
