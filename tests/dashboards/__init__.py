"""Dashboards, rules and Prometheus."""
