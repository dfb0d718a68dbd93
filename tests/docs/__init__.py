"""The pages and the shape of the source."""
