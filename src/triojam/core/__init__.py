"""The decisions and the counts: the protocol, admission, counters and their labels, addresses as text.

There is no I/O and no clock here: times, addresses and bytes are passed in. The package imports the standard
library only. Sockets and tasks are in `serving`.
"""
