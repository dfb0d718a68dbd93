"""A server or a fleet behind HAProxy, with all that watches it, a gentle load, and faults on purpose.

It may use all other packages but `cli`.
"""
