"""It has one thread, which ends when a client resets its connection."""

import sys
from datetime import datetime
from selectors import EVENT_READ, DefaultSelector
from socket import create_server

selector = DefaultSelector()
server = create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
selector.register(server, EVENT_READ)
buffers = {}


def leave(client):
    selector.unregister(client)
    client.close()


def serve(client):
    piece = client.recv(4096)
    if not piece:
        return leave(client)
    buffer = buffers[client] + piece
    while b"\n" in buffer:
        line, _, buffer = buffer.partition(b"\n")
        if not (line.startswith(b"TIME") and line.endswith(b"\r")):
            return leave(client)
        client.sendall(datetime.now().strftime("JAM %H:%M:%S\r\n").encode())
    if len(buffer) > 512:
        return leave(client)
    buffers[client] = buffer
    return None


while True:
    for key, _ in selector.select():
        if key.fileobj is server:
            client, _ = server.accept()
            client.settimeout(0.1)
            buffers[client] = b""
            selector.register(client, EVENT_READ)
            continue
        try:
            serve(key.fileobj)
        except TimeoutError:
            leave(key.fileobj)
