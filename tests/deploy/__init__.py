"""Tests of deploy/: configurations, manifests, and a fleet behind a real HAProxy."""
