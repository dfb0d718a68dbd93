"""How fast triojam is, beside other servers of the same protocol on the same machine."""
