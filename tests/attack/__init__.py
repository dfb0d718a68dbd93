"""Attacks that are cheap for the attacker, and their cost for the other clients.

The server runs on one core, fifty hostile clients on another. Beside them a good client sends a request every
5 ms, newcomers connect, metrics are scraped, and the watchdog is fed. Then the server gets a SIGTERM during
the attack. `python -m tests.attack` runs each attack over each transport and prints a table.
"""
