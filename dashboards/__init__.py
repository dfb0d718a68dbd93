"""Grafana dashboards as code: `python -m dashboards.generate` writes the JSON that Grafana reads."""
