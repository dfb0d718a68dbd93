"""An hour of everything at once, against real servers: `python -m tests.soak --minutes 60`.

A run has rounds. Each round begins with a rest without clients: the soak reads the memory, descriptors, tasks
and counters of the server. Then honest clients run alone, and the counters must equal their counts. Then
hostile clients join them, while settings are reloaded and certificates are replaced. Meanwhile a second
server is restarted under a listening socket that stays open, and its clients must not notice.
"""
