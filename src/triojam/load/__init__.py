"""The client `load`: what is sent and when, the check of each answer, the result.

It reads a server's counters over HTTP, and shares no code with the serving path.
"""
