"""Attacks that cost the attacker next to nothing, and what they cost everyone else.

A server on one core, fifty hostile clients on another. Beside them a good client asks every 5 ms, newcomers
connect and ask, metrics are scraped, and the watchdog is to be fed. At last the server is told to stop, while
the attack goes on. `python -m tests.attack` runs each attack over each transport and prints a table.
"""
