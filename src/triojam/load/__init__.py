"""The client `load`: what it sends and when, the check of each answer, and the result.

It reads a server's counters over HTTP, and shares no code with the serving path.
"""
