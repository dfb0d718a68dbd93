"""A server with Prometheus, Alertmanager and Grafana, a gentle load, and faults on purpose.

It may use all other packages but `cli`.
"""
