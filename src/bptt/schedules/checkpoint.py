"""Binomial checkpointing: which states to keep and which segments to run again, for the fewest runs.

A chain of l segments is pulled back from its end with room for c stored states, the one at 0 included. With r the
smallest number such that C(c + r, c) >= l, the fewest forward advances are

    t(l, c) = r l - C(c + r, c + 1)                                                       (1)

reached by splitting the first m = max(1, C(c + r - 2, c), l - C(c + r - 1, c - 1)) segments off each time  (2).
Each segment is run once more when it is pulled back; (1) doesn't count that run.

Source: Griewank & Walther 2000, "Algorithm 799: revolve", ACM TOMS 26(1), proposition 1; (2) is one of several
optimal splits.
"""

from collections.abc import Iterator
from math import comb
from typing import NamedTuple


class Advance(NamedTuple):
    """Run the working state, which is the one before segment `start`, forward to the one before `stop`."""

    start: int
    stop: int


class Store(NamedTuple):
    """Keep the working state, which is the one before segment `step`."""

    step: int


class Restore(NamedTuple):
    """Take the kept state before segment `step` as the working state."""

    step: int


class Vjp(NamedTuple):
    """Run segment `step` from the working state, which is the one before it, and pull the cotangent back."""

    step: int


class Free(NamedTuple):
    """Forget the kept state before segment `step`."""

    step: int


Action = Advance | Store | Restore | Vjp | Free


def repetitions(segments: int, slots: int) -> int:
    """r of (1): no segment is advanced over more than r times.

    >>> repetitions(1000, 10)
    4
    """
    r = 0
    while comb(slots + r, slots) < segments:
        r += 1
    return r


def forward_steps(segments: int, slots: int) -> int:
    """t(l, c) of (1): the advances that `actions` makes, segment by segment.

    >>> [forward_steps(1000, slots) for slots in (1, 2, 3, 5, 10, 20, 32, 50)]
    [499500, 28820, 12155, 6284, 3636, 2747, 2405, 1948]
    """
    r = repetitions(segments, slots)
    return r * segments - comb(slots + r, slots + 1)


def actions(segments: int, slots: int) -> Iterator[Action]:
    """The schedule, action by action; the machine starts with the state at 0 kept and as its working state.

    segments: l >= 1. slots: c >= 1 kept states at once, the one at 0 included.

    O(1) an action but for the binomials of (2); no recursion, so a million segments are no trouble.

    >>> for action in actions(3, slots=2): print(action)
    Advance(start=0, stop=1)
    Store(step=1)
    Advance(start=1, stop=2)
    Vjp(step=2)
    Restore(step=1)
    Vjp(step=1)
    Free(step=1)
    Restore(step=0)
    Vjp(step=0)
    Free(step=0)
    """
    kept, at, end = [0], 0, segments
    while end > 0:
        base = kept[-1]
        if at != base:
            yield Restore(base)
            at = base
        free = slots - len(kept)
        while end - at > 1:
            split = _split(end - at, free + 1) if free else end - at - 1
            yield Advance(at, at + split)
            at += split
            if free:
                yield Store(at)
                kept.append(at)
                free -= 1
        end -= 1
        yield Vjp(end)
        if kept[-1] == end:
            yield Free(kept.pop())
        at = -1  # the working state went into the pull-back


def _split(segments: int, slots: int) -> int:
    """m of (2)."""
    r = repetitions(segments, slots)
    return max(1, comb(slots + r - 2, slots), segments - comb(slots + r - 1, slots - 1))
