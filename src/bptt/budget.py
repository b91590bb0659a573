"""Bytes turned into the cheapest checkpoints that keep within them, by measuring tapes of the model itself."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
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
    """`memory="512MiB"`: plans by what was measured, and measures what it plans before it runs."""

    def __init__(self, size: int, meter: Meter) -> None:
        self.size, self._meter = size, meter
        self._saved: dict[Any, _Saved] = {}
        self._plans: dict[Any, Checkpoints] = {}

    def plan(self, problem: Problem, window: Window, begin: Tree, initial: Initial | None) -> Checkpoints:
        """The checkpoints for a window; ValueError with the least budget that works where this one doesn't."""
        probe = WindowProbe(problem, window, begin, initial, self._meter, self.size)
        key = (probe.steps, probe.shapes)
        if not probe.cuts and key in self._plans:
            return self._plans[key]
        with isolated(problem.model, state.leaves(begin)):
            saved = self._saved.setdefault(probe.shapes, _Saved())
            saved.measure(probe, self.size)
            chosen = cheapest(probe, self.size, saved)
            while saved.correct(probe, chosen.segment):
                chosen = cheapest(probe, self.size, saved)
        if not probe.cuts:  # where calls are cut differs from window to window
            self._plans[key] = chosen
        return chosen


class _Saved:
    """Bytes that a tape saves, by its steps and joints: measured points, straight lines between and beyond them.

    Affine in the steps for most models; kernels that change with the length bend the line, so lengths double until
    the budget is reached. Cuts between calls and resets count beside, each as the dearest one seen.
    """

    def __init__(self) -> None:
        self._points: dict[int, float] = {}
        self._by_cut = self._by_reset = 0.0
        self._known: set[tuple[int, int, int]] = set()

    def __call__(self, steps: int, cuts: int, resets: int) -> float:
        return self._joined(steps) + self._by_cut * cuts + self._by_reset * resets

    def _joined(self, steps: int) -> float:
        lengths = sorted(self._points)
        if len(lengths) == 1:
            return self._points[lengths[0]] * steps
        i = min(max(bisect_left(lengths, steps), 1), len(lengths) - 1)
        (m, n) = lengths[i - 1], lengths[i]
        slope = (self._points[n] - self._points[m]) / (n - m)
        return max(self._points[n] + max(slope, 0) * (steps - n), 0)

    def measure(self, probe: "WindowProbe", size: int) -> None:
        """One step, then twice as many as long as they promise to fit; two steps in two calls; a step that resets."""
        if not self._points:
            self._points[1] = self._by_cut = probe.saved(0, 1, [])
        if probe.resets and not self._by_reset:
            t = probe.resets[-1]
            self._by_reset = max(0, probe.saved(t, t + 1) - self._points[1])
        while (last := max(self._points)) < probe.steps and self._joined(2 * last) + probe.states <= size:
            n = min(2 * last, probe.steps)
            self._points[n] = probe.saved(0, n, [])
            if n == 2 and 2 * self._points[1] + probe.states <= size:
                self._by_cut = max(0, probe.saved(0, n, [probe.window.start + 1]) - self._points[n])

    def correct(self, probe: "WindowProbe", segment: int) -> bool:
        """Measure the segments of a plan that are of a new kind; whether one saves more than was thought."""
        for number, cuts, resets in probe.kinds(segment):
            start, stop = number * segment, min((number + 1) * segment, probe.steps)
            kind = (stop - start, cuts, resets)
            if kind in self._known or (cuts + resets == 0 and stop - start in self._points):
                continue
            thought = self(stop - start, cuts, resets)
            found = probe.saved(start, stop)
            self._known.add(kind)
            if cuts + resets == 0:
                self._points[stop - start] = found
            elif found > thought:
                more = (found - thought) / (cuts + resets)
                self._by_cut, self._by_reset = self._by_cut + more, self._by_reset + more
            if found > thought:
                return True
        return False


@dataclass(frozen=True)
class WindowProbe:
    """Tapes made only to be measured, of pieces of a window, from a state of the right shapes."""

    problem: Problem
    window: Window
    begin: Tree
    initial: Initial | None
    meter: Meter
    size: int

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
        return 5 * state.nbytes(self.begin)

    @cached_property
    def resets(self) -> list[int]:
        """The steps at which rows reset, counted from the window's start."""
        if self.problem.native_start:
            return []
        return [t - self.window.start for t in self.problem.time.resets(self.window.start, self.window.stop)]

    def kinds(self, segment: int) -> list[tuple[int, int, int]]:
        """(number, cuts inside, resets) of the first segment and of all that have any."""
        cuts = Counter(cut // segment for cut in self.cuts if cut % segment)
        resets = Counter(step // segment for step in self.resets)
        return [(number, cuts[number], resets[number]) for number in sorted({0, *cuts, *resets})]

    def saved(self, start: int, stop: int, cuts: list[int] | None = None) -> int:
        """Bytes saved by a tape of steps [start, stop) of the window with all their losses."""
        a, b = self.window.start + start, self.window.start + stop
        piece = replace(self.window, start=a, first=a, stop=b, keep=b)
        segment = Segment(self.problem, piece, self.initial, a, b, cuts)
        return self.meter.held(segment, self.begin, self.size)


def cheapest(probe: WindowProbe, size: int, saved: Callable[[int, int, int], float]) -> Checkpoints:
    """Among segment lengths a tenth apart, the one that fits with the fewest steps and calls run.

    saved: bytes of a tape by its steps, cuts and resets.
    """
    one = max(1, state.nbytes(probe.begin))

    def fullest(segment: int) -> float:
        return max(saved(min(segment, probe.steps), cuts, resets) for _, cuts, resets in probe.kinds(segment))

    def slots(segment: int) -> int:
        free = size - probe.states - fullest(segment)
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
        least = ceil(probe.states + fullest(1)) + one
        raise ValueError(
            f"memory={size} can't hold a segment of one step: the least that works here is memory={least}."
        )
    return best[1]
