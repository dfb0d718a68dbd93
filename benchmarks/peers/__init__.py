"""Small, idiomatic servers of triojam's protocol, each as its own toolkit would have it written.

They answer what a benchmark asks and close the connection on anything else. What they leave out
(timeouts, limits, metrics, a drain) is part of what the comparison is about.
"""
