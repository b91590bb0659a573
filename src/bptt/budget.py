"""Bytes turned into the cheapest checkpoints that keep within them, by measuring tapes of the model itself."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

from bptt import state
from bptt.memory import Checkpoints, Meter
from bptt.replay import isolated
from bptt.schedules import checkpoint
from bptt.schedules.windows import Window
from bptt.segment import Initial, Problem, Segment
from bptt.state import Tree

CALL = 16
"""What one call of a recurrence costs beside its steps, in steps; a rule of thumb against tiny segments."""


class Budget:
    """`memory="512MiB"`: plans by what was measured, each kind of plan measured once before it is used."""

    def __init__(self, size: int, meter: Meter) -> None:
        self.size, self._meter = size, meter
        self._affine: dict[Any, tuple[float, float, float]] = {}
        self._plans: dict[Any, Checkpoints] = {}
        self._measured: dict[Any, float] = {}

    def plan(self, problem: Problem, window: Window, begin: Tree, initial: Initial | None) -> Checkpoints:
        """The checkpoints for a window; ValueError with the least budget that works where this one doesn't."""
        probe = _Probe(problem, window, begin, initial, self._meter)
        key = (probe.steps, probe.shapes)
        if not probe.cuts and key in self._plans:
            return self._plans[key]
        with isolated(problem.model, state.leaves(begin)):
            chosen = self._plan(probe)
        if not probe.cuts:  # where calls are cut differs from window to window
            self._plans[key] = chosen
        return chosen

    def _plan(self, probe: "_Probe") -> Checkpoints:
        if probe.shapes not in self._affine:
            self._affine[probe.shapes] = probe.affine()
        a, b, d = self._affine[probe.shapes]
        excess = 0.0
        while True:
            chosen = _cheapest(probe, self.size, lambda steps, calls, more=excess: a + b * steps + d * calls + more)
            number, calls = probe.fullest(chosen.segment)
            steps = min(chosen.segment, probe.steps)
            if (steps, calls, probe.shapes) not in self._measured:
                saved = probe.saved(number * chosen.segment, min((number + 1) * chosen.segment, probe.steps))
                self._measured[steps, calls, probe.shapes] = saved - (a + b * steps + d * calls)
            above = self._measured[steps, calls, probe.shapes]
            if above <= excess:
                return chosen
            excess = above


@dataclass(frozen=True)
class _Probe:
    """Tapes made only to be measured, of pieces of a window, from a state of the right shapes."""

    problem: Problem
    window: Window
    begin: Tree
    initial: Initial | None
    meter: Meter

    @property
    def steps(self) -> int:
        return self.window.stop - self.window.start

    @cached_property
    def cuts(self) -> list[int]:
        """Where a call ends inside the window, counted from its start."""
        whole = Segment(self.problem, self.window, self.initial, self.window.start, self.window.stop)
        return [a - self.window.start for a, _ in whole.calls[1:]]

    @property
    def shapes(self) -> Any:
        return tuple((leaf.shape, leaf.dtype) for leaf in state.leaves(self.begin))

    @property
    def states(self) -> int:
        """Bytes beside slots and saved tensors: the states worked from, last, and next window's, two cotangents."""
        kept = self.window.start < self.window.keep < self.window.stop
        return (4 + kept) * state.nbytes(self.begin)

    def fullest(self, segment: int) -> tuple[int, int]:
        """The number of the segment with the most calls, and how many those are."""
        inner = Counter(cut // segment for cut in self.cuts if cut % segment)
        number, cuts = inner.most_common(1)[0] if inner else (0, 0)
        return number, cuts + 1

    def saved(self, start: int, stop: int, cuts: list[int] | None = None) -> int:
        """Bytes saved by a tape of steps [start, stop) of the window with all their losses."""
        a, b = self.window.start + start, self.window.start + stop
        piece = replace(self.window, start=a, first=a, stop=b, keep=b)
        segment = Segment(self.problem, piece, self.initial, a, b, cuts)
        return self.meter.tape(segment, self.begin)[1]

    def affine(self) -> tuple[float, float, float]:
        """(a, b, d) of saved bytes ≈ a + b · steps + d · calls, from three tapes."""
        n = min(self.steps, 16)
        one = self.saved(0, 1, [])
        if n == 1:
            return one, 0, 0
        joined = self.saved(0, n, [])
        apart = self.saved(0, n, [self.window.start + t for t in range(1, n)])
        b = max(0, joined - one) / (n - 1)
        d = max(0, apart - joined) / (n - 1)
        return max(0, one - b - d), b, d


def _cheapest(probe: _Probe, size: int, saved: Any) -> Checkpoints:
    """Among segment lengths a tenth apart, the one that fits with the fewest steps and calls run."""
    one = max(1, state.nbytes(probe.begin))

    def slots(segment: int) -> int:
        free = size - probe.states - saved(min(segment, probe.steps), probe.fullest(segment)[1])
        return min(ceil(probe.steps / segment), int(free // one))

    best: tuple[float, Checkpoints] | None = None
    segment = probe.steps
    while segment >= 1:
        room = slots(segment)
        if room >= 1:
            segments = ceil(probe.steps / segment)
            cost = (checkpoint.forward_steps(segments, room) + segments) * (segment + CALL)
            if best is None or cost < best[0]:
                best = cost, Checkpoints(room, segment)
            if segments == 1:
                break
        segment = min(segment - 1, int(segment / 1.1))
    if best is None:
        least = ceil(probe.states + saved(1, 1)) + one
        raise ValueError(
            f"memory={size} can't hold a segment of one step: the least that works here is memory={least}."
        )
    return best[1]
