"""An hour of everything at once, against real servers: `python -m tests.soak --minutes 60`.

A run is made of rounds. In each, first nobody is there, and the server is looked at: memory, descriptors,
tasks, accounts. Then honest clients are alone, and the server's counts must be theirs to the last request.
Then the hostile ones come beside them, while settings are reloaded and certificates replaced. Meanwhile a
second server is restarted under the same listening socket again and again, and its clients may not notice.
"""
