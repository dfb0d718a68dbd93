"""One recv() of 32 bytes is taken for one request."""

import sys
from datetime import datetime
from socket import create_server
from threading import Thread


def serve(client):
    with client:
        while data := client.recv(32):
            if not (data.startswith(b"TIME") and data.endswith(b"\r\n")):
                return
            client.sendall(datetime.now().strftime("JAM %H:%M:%S\r\n").encode())


def safely(client):
    try:
        serve(client)
    except OSError:
        pass


with create_server(("127.0.0.1", int(sys.argv[1])), backlog=128) as server:
    while True:
        client, _ = server.accept()
        Thread(target=safely, args=[client], daemon=True).start()
