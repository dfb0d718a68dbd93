"""Which of several servers is wrong: the intersection of their ranges, as NTP selects (RFC 5905, 11.2.1).

The true offset lies in the range of each server that is right. So the ranges of those have a point in common.
Marzullo's algorithm finds the points that most ranges have. If these are the ranges of more than half of the
servers, the others are wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from triojam.client.session import Answer
from triojam.client.time_of_day import fold

FEWEST = 3


@dataclass(frozen=True)
class Verdict:
    """The largest groups of servers that agree, as places; and what follows from a majority.

    asked: how many servers answered. agree: the group that is the majority; empty without one. offset, bound:
    of what that group has in common. off: of each other server, how far it is from that, with its bound.
    """

    asked: int
    groups: Sequence[tuple[int, ...]]
    agree: tuple[int, ...] = ()
    offset: float = 0.0
    bound: float = 0.0
    off: Mapping[int, tuple[float, float]] = field(default_factory=dict)


def judge(outcomes: Sequence[object]) -> Verdict | None:
    """Compare the answers among some outcomes; None if there are fewer than three."""
    answers = {place: each for place, each in enumerate(outcomes) if isinstance(each, Answer)}
    if len(answers) < FEWEST:
        return None
    # An offset is known within half a day. So all are taken near the first one.
    first = next(iter(answers.values())).offset
    ranges = {}
    for place, each in answers.items():
        middle = first + fold(each.offset - first)
        ranges[place] = middle - each.bound, middle + each.bound
    groups = _largest_groups(ranges)
    if len(groups) > 1 or 2 * len(groups[0]) <= len(answers):
        return Verdict(len(answers), groups)
    low = max(ranges[place][0] for place in groups[0])
    high = min(ranges[place][1] for place in groups[0])
    offset, bound = (low + high) / 2, (high - low) / 2
    off = {
        place: (fold(each.offset - offset), each.bound + bound)
        for place, each in answers.items()
        if place not in groups[0]
    }
    return Verdict(len(answers), groups, groups[0], fold(offset), bound, off)


def _largest_groups(ranges: Mapping[int, tuple[float, float]]) -> list[tuple[int, ...]]:
    """Return the largest sets of ranges that have a point in common, which is the start of one of them."""
    found = {
        tuple(place for place, (low, high) in ranges.items() if low <= start <= high)
        for start, _ in ranges.values()
    }
    largest = max(map(len, found))
    return sorted(each for each in found if len(each) == largest)
