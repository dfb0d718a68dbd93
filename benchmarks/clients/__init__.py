"""`triojam load` compared with the client in C: both ask servers whose latency is known."""
