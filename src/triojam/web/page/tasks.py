"""The tree of running tasks, with names that teach how the server is built."""

from collections import Counter
from itertools import islice
from typing import NamedTuple, TypedDict

import trio

# Nurseries and tasks that one tree looks at; clients are thousands.
MOST_BRANCHES = 200
MOST_TASKS = 2000


class Taught(NamedTuple):
    """What the page calls a task, and the nurseries within it, from the outermost."""

    name: str
    nurseries: tuple[str, ...] = ()


_SERVER = Taught("server", ("metrics port", "probes", "clients", "accepting"))
# By the name that Trio has for a task.
NAMES = {
    "<init>": Taught("Trio's first task", ("system tasks", "asynchronous generators", "main")),
    "<TrioToken.run_sync_soon task>": Taught("calls from other threads"),
    "triojam.process.signals._run": Taught("main task", ("signals", "reloads", "server")),
    "triojam.process.signals._run.<locals>.listen": Taught("signals: waits for SIGTERM, SIGINT, SIGHUP"),
    "triojam.daemon._reload_when_asked": Taught("reloads: reads the settings after SIGHUP"),
    "triojam.daemon.run.<locals>.run_server": _SERVER,
    "triojam.server.serve": _SERVER,
    "triojam.server.Server._serve_web": Taught("metrics port", ("connections", "accepting")),
    "triojam.web.http_server.HttpServer._accept": Taught("metrics port: accepts connections"),
    "triojam.web.http_server.HttpServer._converse": Taught("metrics port: connection"),
    "triojam.web.page.live_page.LivePage.run": Taught("live page: a sample a second"),
    "triojam.process.watchers.watch_lag": Taught("probe: event loop lag"),
    "triojam.process.watchers.watch_clock": Taught("probe: steps of the clock"),
    "triojam.process.watchers.report_traffic": Taught("log: a line about the traffic"),
    "triojam.process.announcements.watch_certificates": Taught("log: a look at the certificates each day"),
    "triojam.process.watchers.give_back_memory": Taught("memory: returned after a crowd has left"),
    "triojam.process.systemd.ServiceManager.attend": Taught("service manager", ("status, watchdog",)),
    "triojam.process.systemd.ServiceManager._report": Taught("service manager: sends the totals"),
    "triojam.process.systemd.ServiceManager._feed": Taught("service manager: feeds the watchdog"),
    "triojam.serving.fast_lane.FastLane.watch": Taught("fast lane: deadlines of its clients"),
    "triojam.serving.handler.Handler.keep_time": Taught("deadlines of the clients with a task"),
    "triojam.serving.listeners.accept_until": Taught("listener", ("accepts until the drain",)),
    "trio.serve_listeners": Taught("trio.serve_listeners", ("one task a listener",)),
    "trio._highlevel_serve_listeners._serve_one_listener": Taught("accepts clients"),
    "trio._highlevel_serve_listeners._run_handler": Taught("connection"),
}


class Nursery(TypedDict):
    """A nursery. name: what it is for, or ""."""

    name: str
    tasks: list["Branch"]


class Branch(TypedDict):
    """Tasks of one name in one nursery. times: their number. nurseries: of a single task, otherwise empty."""

    name: str
    times: int
    nurseries: list[Nursery]


def task_tree() -> Branch:
    """Return the running tasks, from Trio's first task down. Its size and the work are bounded.

    Tasks without nurseries, such as those of clients, are grouped by name.
    """
    root = trio.lowlevel.current_root_task()
    if root is None:
        raise RuntimeError("there are tasks only while Trio runs")
    return _branch(root, [MOST_BRANCHES])


def _branch(task: trio.lowlevel.Task, left: list[int]) -> Branch:
    left[0] -= 1
    taught = NAMES.get(task.name, Taught(_short(task.name)))
    nurseries = []
    for place, nursery in enumerate(task.child_nurseries):
        name = taught.nurseries[place] if place < len(taught.nurseries) else ""
        nurseries.append(Nursery(name=name, tasks=_children(nursery, left)))
    return Branch(name=taught.name, times=1, nurseries=nurseries)


def _children(nursery: trio.Nursery, left: list[int]) -> list[Branch]:
    tasks = nursery.child_tasks
    alike: Counter[str] = Counter()
    branches = []
    for task in islice(tasks, MOST_TASKS):
        if not task.child_nurseries:
            alike[task.name] += 1
        elif left[0] > 0:
            branches.append(_branch(task, left))
    if len(tasks) > MOST_TASKS:  # in such a crowd, nearly all are clients
        [(most, _)] = alike.most_common(1)
        alike[most] += len(tasks) - MOST_TASKS
    for name, times in alike.items():
        taught = NAMES.get(name, Taught(_short(name)))
        branches.append(Branch(name=taught.name, times=times, nurseries=[]))
    return sorted(branches, key=lambda branch: branch["name"])


def _short(name: str) -> str:
    """Shorten the name of a task that has no taught one: that of a program that embeds the server."""
    return name.replace(".<locals>", "")
