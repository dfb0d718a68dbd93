"""Flags whose values need more than a parser: files and variables are read, and checked together."""
