"""The client load."""
