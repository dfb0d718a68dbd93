"""A process, from outside."""
