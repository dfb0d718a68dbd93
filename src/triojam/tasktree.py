"""The running tasks and the nurseries they are in: what structured concurrency looks like while it runs."""

from collections import Counter
from typing import TypedDict

import trio


class Branch(TypedDict):
    """Tasks of one name in one nursery. times: how many they are; nurseries: of one task, else empty."""

    name: str
    times: int
    nurseries: list[list["Branch"]]


def task_tree(most: int = 200) -> Branch:
    """Return what runs, from Trio's own first task down; after `most` branches, the rest is left out.

    Tasks that have no nurseries of their own, such as those of clients, are put together by name.
    """
    root = trio.lowlevel.current_root_task()
    if root is None:
        raise RuntimeError("there are tasks only while Trio runs")
    return _branch(root, [most])


def _branch(task: trio.lowlevel.Task, left: list[int]) -> Branch:
    left[0] -= 1
    nurseries = [_children(nursery, left) for nursery in task.child_nurseries]
    return Branch(name=_short(task.name), times=1, nurseries=nurseries)


def _children(nursery: trio.Nursery, left: list[int]) -> list[Branch]:
    alike: Counter[str] = Counter()
    branches = []
    for task in nursery.child_tasks:
        if not task.child_nurseries:
            alike[task.name] += 1
        elif left[0] > 0:
            branches.append(_branch(task, left))
    branches += [Branch(name=_short(name), times=times, nurseries=[]) for name, times in alike.items()]
    return sorted(branches, key=lambda branch: branch["name"])


def _short(name: str) -> str:
    """Return a task's name without what says nothing about it."""
    return name.removeprefix("triojam.").replace(".<locals>", "")
