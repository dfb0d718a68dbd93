"""The metrics port: HTTP, its routes, Prometheus samples, the live page, passwords.

It reads counters and does not know how clients of the time port are served.
"""
