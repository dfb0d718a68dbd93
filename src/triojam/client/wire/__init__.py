"""How a server is reached: its address as a word, the alerts of TLS, and what it speaks instead."""
