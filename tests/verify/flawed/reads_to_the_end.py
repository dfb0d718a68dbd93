"""An empty recv() ends the thread, before the requests that came with it are answered."""

import sys
from datetime import datetime
from socket import MSG_PEEK, create_server
from threading import Thread


def serve(client):
    buffer = b""
    with client:
        while piece := client.recv(4096):
            buffer += piece
            client.settimeout(0.1)
            try:
                if client.recv(1, MSG_PEEK) == b"":
                    return
            except TimeoutError:
                pass
            client.settimeout(None)
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                if not (line.startswith(b"TIME") and line.endswith(b"\r")):
                    return
                client.sendall(datetime.now().strftime("JAM %H:%M:%S\r\n").encode())
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
