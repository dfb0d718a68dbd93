"""The clients `ask` and `watch`: one connection, an exact offset, and how answers are shown.

Many requests at once are `load`.
"""
