"""Iterate over a window's segments, last first, each with the state before it, recomputed from stored states."""

from collections.abc import Iterator

from bptt import _tree
from bptt._checkpoint import Advance, Free, Restore, Store, Vjp, actions
from bptt._segment import Segment
from bptt._tree import Tree


class Rewind:
    """An iterable of (segment, the state before it), last segment first, under a checkpoint schedule.

    slots: how many states are kept at once, including `begin`; the steps between them are run again.
    forward_steps: steps that were run so far. states: how many states are held now.
    """

    def __init__(self, segments: list[Segment], slots: int, begin: Tree) -> None:
        self._segments, self._slots, self._begin = segments, slots, begin
        self.forward_steps, self.states = 0, 1

    def __iter__(self) -> Iterator[tuple[Segment, Tree]]:
        if len(self._segments) == 1:
            yield self._segments[0], self._begin
            return
        working, at = self._begin, 0
        stored, versions = {0: working}, {0: _tree.versions(working)}
        for action in actions(len(self._segments), self._slots):
            match action:
                case Advance(first, last):
                    for segment in self._segments[first:last]:
                        working = segment.advance(working).after
                        self.forward_steps += segment.stop - segment.start
                    at = last
                case Store(step):
                    stored[step], versions[step] = working, _tree.versions(working)
                case Restore(step):
                    working, at = stored[step], step
                    _check_unchanged(versions[step], _tree.versions(working))
                case Vjp(step):
                    self.states = len(stored) + (at not in stored)
                    yield self._segments[step], working
                case Free(step):
                    del stored[step]


def _check_unchanged(before: list[int], now: list[int]) -> None:
    """Raise if somebody has written to the stored states."""
    if before != now:
        raise ValueError(
            "the recurrence changes the state it is given in place, which destroys the stored states that memory= "
            "replays from: make it return a new state."
        )
