"""A client of the time port, from accept to close: listeners, the fast lane, the handler, TLS, deadlines.

What a request means and who may send one is decided in `core`; the metrics port is `web`.
"""
