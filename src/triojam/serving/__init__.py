"""A client of the time port, from accept to close: listeners, the fast lane, the handler, TLS, deadlines.

`core` decides what a request means and which clients are admitted; the metrics port is in `web`.
"""
