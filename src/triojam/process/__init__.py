"""What a server needs from its system: sockets, signals, service manager, logs, watchers of loop and clock.

This package does not know clients; `daemon` puts it around a server.
"""
