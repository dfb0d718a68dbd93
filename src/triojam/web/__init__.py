"""The metrics port: HTTP, its routes, Prometheus samples, the live page, passwords.

It reads counters, and does not import the code that serves the time port.
"""
