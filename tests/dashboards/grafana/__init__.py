"""Grafana's own code: `check` holds the dashboards to it, `python -m tests.dashboards.grafana` draws with it."""
