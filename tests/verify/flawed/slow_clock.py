"""The clock is three seconds behind."""

import sys
from datetime import datetime, timedelta
from socket import create_server
from threading import Thread


def serve(client):
    buffer = b""
    with client:
        while piece := client.recv(4096):
            buffer += piece
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                if not (line.startswith(b"TIME") and line.endswith(b"\r")):
                    return
                client.sendall((datetime.now() - timedelta(seconds=3)).strftime("JAM %H:%M:%S\r\n").encode())
            if len(buffer) > 512:
                return


def safely(client):
    try:
        serve(client)
    except OSError:
        pass


with create_server(("127.0.0.1", int(sys.argv[1])), backlog=128) as server:
    while True:
        client, _ = server.accept()
        Thread(target=safely, args=[client], daemon=True).start()
