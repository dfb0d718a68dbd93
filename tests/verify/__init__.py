"""Tests of `triojam.verify`."""
