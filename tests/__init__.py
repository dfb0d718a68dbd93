"""Tests of triojam, and the programs that measure it over time."""
