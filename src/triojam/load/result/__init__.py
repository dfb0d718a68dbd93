"""The result of a load: its figures, and how they are shown, judged and written to files."""
