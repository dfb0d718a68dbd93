"""The clients `ask` and `watch`: one connection to a server, its clock's offset, and how answers are shown.

The client for many requests is `load`.
"""
