"""Binomial checkpointing: which states to keep and which segments to run again, for the fewest runs.

A chain of l segments is pulled back from its end with room for c stored states, including the one at 0. With r the
smallest number such that C(c + r, c) >= l, the fewest forward advances are

    t(l, c) = r l - C(c + r, c + 1)                                                       (1)

reached by splitting the first m = max(1, C(c + r - 2, c), l - C(c + r - 1, c - 1)) segments off each time  (2).
Each segment is run once more when it is pulled back; (1) doesn't count that run.

Source: Griewank & Walther 2000, "Algorithm 799: revolve", ACM TOMS 26(1), proposition 1; (2) is one of several
optimal splits.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

from bptt import _errors


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

    segments: l >= 1. slots: c >= 1 states kept at once, including the one at 0.

    O(1) per action, apart from the binomials of (2); there is no recursion, so a million segments are no trouble.

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


_UNITS = {"": 1, "b": 1} | {
    prefix.lower() + end: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for end, base in (("b", 1000), ("ib", 1024))
}


@dataclass(frozen=True)
class Checkpoints:
    """Store `slots` states, including the one at the window's start, and record `segment` steps at a time.

    The gradient is that of full storage, up to rounding; the states in between are computed again by the optimal
    binomial schedule, with t(l, slots) · segment extra steps for l = ⌈steps / segment⌉.

    slots: int >= 1. segment: steps >= 1. Raises ValueError for anything else.

    >>> import bptt
    >>> bptt.Checkpoints(slots=10, segment=100)
    Checkpoints(slots=10, segment=100)

    Source: Griewank & Walther 2000, ACM TOMS 26(1); Gruslys et al. 2016, https://arxiv.org/abs/1606.03401
    """

    slots: int
    segment: int

    def __post_init__(self) -> None:
        for name in ("slots", "segment"):
            _errors.check_count(getattr(self, name), f"{self!r}: {name}")


Memory = str | int | Checkpoints | None
"""`memory=`: None stores everything; bytes as "512MiB" or an int; or `Checkpoints`."""


def parse(memory: Memory) -> Checkpoints | int | None:
    """`memory=` as Checkpoints, a number of bytes, or None; raises ValueError for anything else.

    >>> parse("1.5KiB")
    1536
    """
    if memory is None or isinstance(memory, Checkpoints):
        return memory
    number, unit = memory, ""
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", memory)
        number, unit = (float(match[1]), match[2].lower()) if match else (0, "")
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or unit not in _UNITS
        or not number * _UNITS[unit] >= 1
    ):
        raise ValueError(
            f'memory={memory!r}: give a size such as "512MiB" or "2GB", a positive number of bytes, '
            f"bptt.Checkpoints(slots, segment), or None to store everything."
        )
    size = number * _UNITS[unit]
    return None if size >= 2**63 else int(size)  # infinity and the like: everything fits
