"""What a server asks of its system: sockets, signals, the service manager, logs, watchers of loop and clock.

It does not know clients; `daemon` puts it around a server.
"""
