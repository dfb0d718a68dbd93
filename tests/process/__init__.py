"""What a server asks of its system."""
