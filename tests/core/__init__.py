"""What decides and counts."""
