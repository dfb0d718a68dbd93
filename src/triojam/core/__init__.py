"""What decides and counts: the protocol, admission, counters and their labels, addresses as text.

No I/O and no clock: times, addresses and bytes are passed in. It imports the standard library only. Sockets
and tasks are in `serving`.
"""
