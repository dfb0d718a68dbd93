"""Compares the speed of triojam with other servers of the same protocol on the same machine."""
