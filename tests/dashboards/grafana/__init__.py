"""Grafana's own code: `check` holds the dashboards to it, and `pictures` draws them with it."""
