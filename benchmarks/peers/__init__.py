"""Small servers of triojam's protocol, each in the usual style of its library.

They answer the benchmark's requests, and close the connection after anything else. They have no timeouts,
limits, metrics or drain: the comparison shows the cost of these.
"""
