"""The command line: one function a command, no logic.

Nothing imports it. Each side's module imports only what its commands need, so that a start is quick.
"""
