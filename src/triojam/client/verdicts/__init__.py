"""What follows from offsets: which server is wrong, and which offset is too large."""
