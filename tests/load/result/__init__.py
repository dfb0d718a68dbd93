"""The result of a load: its figures, its words, its goals and its files."""
