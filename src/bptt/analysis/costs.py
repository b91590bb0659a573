"""What windows of a recurrence cost: time and bytes of short ones, measured, and lines through them for any other."""

import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bptt import _tree
from bptt._checkpoint import Checkpoints
from bptt._memory import Meter, Seen
from bptt._options import Options
from bptt._run import Run
from bptt._segment import Segment
from bptt._snapshot import gradients_aside
from bptt._stream import Chunk
from bptt._tree import Tree
from bptt.strategies.base import Draw, Strategy, Upto
from bptt.strategies.windows import Carry, Window

REPEATS = 5
LONGEST = 4096
"""Steps of a probe at most; a chunk that is shorter is repeated."""
SPARE = 2**26
"""Bytes that a probe may take whatever the budget."""
PATIENCE = 0.1
"""Seconds of a window that is long enough to be a probe, and that a figure's repetitions may take on from one."""
NODES = 1000
"""Nodes of a graph that are looked at from Python: each gets an object, and to free a long chain of these recurses."""


class Shape(NamedTuple):
    """What a window's cost depends on: its steps, those with a loss, its weights, and where a state inside is kept.

    kept: steps before the state that the next window starts from; 0 where that isn't inside the window.
    """

    steps: int
    losses: int
    kept: int = 0
    weights: int = 0

    @classmethod
    def of(cls, window: Window) -> "Shape":
        """The shape of `window`."""
        kept = window.keep - window.start if window.start < window.keep < window.stop else 0
        return cls(window.stop - window.start, window.steps, kept, len(window.weights))

    @property
    def plain(self) -> bool:
        """Whether it is one call, with a loss at each step."""
        return self == Shape(self.steps, self.steps)

    def scaled(self, steps: int) -> "Shape":
        """A window of the same kind with so many steps."""
        losses, kept, weights = (-(-part * steps // self.steps) for part in self[1:])
        return Shape(steps, losses, min(kept, steps - 1), min(weights, steps - 1))

    def window(self, start: int) -> Window:
        """A window of this shape from step `start` on, its weights evenly spread."""
        stop = start + self.steps
        weights = {start + i * self.steps // (self.weights + 1): 1.0 for i in range(1, self.weights + 1)}
        return Window(start, stop - self.losses, stop, start + self.kept if self.kept else stop, weights)


class Line:
    """Values at some lengths, straight lines between and beyond them, where they don't fall."""

    def __init__(self, points: dict[int, float]) -> None:
        self._points = sorted(points.items())

    def __call__(self, steps: int) -> float:
        if len(self._points) == 1:
            return self._points[0][1] * steps / self._points[0][0]
        i = min(max(bisect_left(self._points, (steps,)), 1), len(self._points) - 1)
        (m, a), (n, b) = self._points[i - 1], self._points[i]
        return b if a > b and steps > n else max(a + (b - a) * (steps - m) / (n - m), 0.0)


class Cost(NamedTuple):
    """Of a window: seconds as the first of a run, seconds as a later one, bytes held at most."""

    first: float
    later: float
    held: float


class Lines(NamedTuple):
    """`Cost` as a function of a window's steps."""

    first: Line
    later: Line
    held: Line

    @classmethod
    def through(cls, found: dict[int, Cost]) -> "Lines":
        """Through costs measured at some lengths."""
        return cls(*(Line({n: cost[i] for n, cost in found.items()}) for i in range(3)))


@dataclass(frozen=True)
class Given(Strategy):
    """A strategy that yields the windows it is given."""

    given: tuple[Window, ...]
    carry: Carry | None = None

    @property
    def carries(self) -> Carry | None:
        """`carry`."""
        return self.carry

    def windows(self, upto: Upto, draw: Draw, progress: Any = None) -> Iterator[Window]:
        """They themselves."""
        for window in self.given:
            upto(window.stop)
            yield window

    def divisor(self, window: Window) -> float:
        """One: nothing is made of the gradient."""
        return 1


class Costs:
    """Measured when first asked for: a window of some shape stored whole, a segment of a schedule, a plain advance.

    options: of the runs; chunk: the steps that these are made of, over and over.
    steps: the most that a probe need have. budget: bytes that no long probe is to exceed, or None.
    """

    def __init__(self, options: Options, chunk: Chunk, steps: int, budget: int | None) -> None:
        self._options, self._chunk, problem = options, chunk, options.problem
        assert options.generator is not None
        self.generator = options.generator
        self._longest, self._budget = min(steps, LONGEST), math.inf if budget is None else budget
        self._found: dict[Shape, Cost] = {}
        self.meter = Meter((problem.model, problem.loss.loss))
        segment = self._segment(1)
        self.span, begin = segment.span, _tree.leaves(segment.span.like)
        modules = [m for m in (problem.model, problem.loss.loss) if isinstance(m, nn.Module)]
        found = [p for module in modules for p in module.parameters()]
        more, all_of_them = _leaves_of(segment, self.span.begin)
        self._leaves = list({id(leaf): leaf for leaf in (*found, *more)}.values())
        if not all_of_them:
            params = [leaf for leaf in self._leaves if leaf.requires_grad] or None
            self._options = replace(options, problem=replace(problem, params=params))
        self.one = _tree.nbytes(self.span.like)
        self.floating = sum(leaf.nbytes for leaf in begin if _tree.carries_cotangent(leaf))
        self.outputs = _tree.nbytes(segment.advance(self.span.begin).outputs) if problem.loss.by_window else 0
        device = next(iter((*begin, *_tree.leaves(chunk.inputs)))).device
        self._device = device
        if math.isnan(self._sample(Shape(4, 4)).held):  # the first is also what a process does once
            raise ValueError(
                "plan predicts the bytes that autograd saves, and torch.func's transforms inside the model or the loss "
                "don't let it see them: use compare, which runs the strategies."
            )

    @cached_property
    def plain(self) -> Lines:
        """Windows of one call with a loss at each step, their graph stored."""
        return Lines.through({n: self._shaped(Shape(n, n)) for n in self._lengths})

    def like(self, shape: Shape) -> Lines:
        """Windows of the kind of `shape`, measured at its own length where that is short enough, and at its half."""
        if shape.steps > self._lengths[-1]:
            if shape.plain:
                return self.plain
            shape = shape.scaled(self._lengths[-1])
        n = shape.steps
        if shape.plain:
            return Lines.through({m: self._shaped(Shape(m, m)) for m in {*self._lengths, n}})
        return Lines.through({m: self._shaped(shape.scaled(m)) for m in (max(2, n // 2), n)})

    def measured(self, shape: Shape) -> Cost | None:
        """A window of just this shape, where it is short enough."""
        return self._shaped(shape) if shape.steps <= self._lengths[-1] else None

    def saved(self, held: float) -> float:
        """Of the bytes that a window holds, those that its graph saves, beside states and cotangents."""
        return max(held - 2 * self.one - self.floating, 0)

    @cached_property
    def loss(self) -> float:
        """Bytes that one step's loss saves."""
        n = self._lengths[-1]
        return max(self._shaped(Shape(n, n)).held - self._shaped(Shape(n, 1)).held, 0) / max(n - 1, 1)

    @cached_property
    def advance(self) -> Line:
        """Seconds of a segment without a graph, noise and buffers put back."""
        return Line({n: self._fastest(self._segment(n)) for n in self._lengths})

    @cached_property
    def segment(self) -> Line:
        """Seconds of one segment's forward and backward under a schedule, which is measured each time."""
        found = {}
        for n in self._lengths:
            both = self._sample(Shape(2 * n, 2 * n), Checkpoints(2, n)).later
            found[n] = max(both - self.advance(n), 0) / 2
        return Line(found)

    @cached_property
    def _lengths(self) -> list[int]:
        """1, 4, 16, ... steps, as far as they are of use, patience goes, and the budget; three at least."""
        lengths = [1]
        while (n := min(4 * lengths[-1], self._longest)) > lengths[-1]:
            last = self._shaped(Shape(lengths[-1], lengths[-1]))
            if len(lengths) > 2 and (4 * last.first > PATIENCE or 4 * last.held > max(self._budget, SPARE)):
                break
            lengths.append(n)
        return lengths

    def _shaped(self, shape: Shape) -> Cost:
        if shape not in self._found:
            self._found[shape] = self._sample(shape)
        return self._found[shape]

    def carried(self, carry: Carry, steps: int) -> tuple[float, int]:
        """What is carried takes of a window of so many steps: seconds, and bytes."""
        found, without = self._sample(shape := Shape(steps, steps), carry=carry), self._shaped(shape)
        return max(found.later - without.later, 0), round(max(found.held - without.held, 0))

    def _sample(self, shape: Shape, memory: Checkpoints | None = None, carry: Carry | None = None) -> Cost:
        """The fastest of some runs of two windows each, one chunk a segment."""
        first: list[float] = []
        later: list[float] = []
        held = 0.0
        n = memory.segment if memory else shape.steps
        stream = [self._piece(n)] * (2 * shape.steps // n)
        windows = Given((shape.window(0), shape.window(shape.steps)), carry)
        begun = time.perf_counter()
        with gradients_aside(self._leaves):
            while len(first) < 2 or (len(first) < REPEATS and time.perf_counter() - begun < REPEATS * PATIENCE):
                for leaf in self._leaves:
                    leaf.grad = None
                start = self._now()
                updates = Run(replace(self._options, memory=memory), stream).updates(windows)
                held = next(updates)[1].memory_bytes
                between = self._now()
                held = max(held, next(updates)[1].memory_bytes)
                first.append(between - start)
                later.append(self._now() - between)
        return Cost(min(first), min(later), held)

    def _segment(self, steps: int) -> Segment:
        """The first steps as a segment that can be replayed, in a run of its own."""
        return Segment(Run(self._options, [self._piece(steps)]).start(steps), 0, steps, replays=True)

    def _fastest(self, segment: Segment) -> float:
        """Seconds of an advance."""
        segment.advance(segment.span.begin)
        found: list[float] = []
        while len(found) < REPEATS and sum(found) < PATIENCE * REPEATS:
            start = self._now()
            segment.advance(segment.span.begin)
            found.append(self._now() - start)
        return min(found)

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()

    def _piece(self, steps: int) -> Chunk:
        """The first steps of the chunk repeated."""
        dim = self._options.problem.time_dim
        times = -(-steps // _tree.leaves(self._chunk.inputs)[0].shape[dim])
        inputs, targets = (_tree.narrow(_tree.join([tree] * times, dim), dim, 0, steps) for tree in self._chunk[:2])
        rows = [
            None if r is None else torch.cat([r] * times, min(dim, r.dim() - 1)).narrow(min(dim, r.dim() - 1), 0, steps)
            for r in self._chunk[2:]
        ]
        return Chunk(inputs, targets, *rows)


def _leaves_of(segment: Segment, begin: Tree) -> tuple[list[Tensor], bool]:
    """Leaves that a segment's graph reaches, of closures too, but for the engine's own; whether these are all.

    Of a graph of many nodes only the next ones are looked at; the others among its leaves are those that it saves.
    """
    seen = Seen()
    try:
        with seen.watching():
            tape = segment.tape(_tree.tracked(begin))
    except (RuntimeError, ValueError):  # hooks are refused, or something that comes again
        tape = segment.tape(_tree.tracked(begin))
    ours = {id(leaf) for leaf in (*_tree.leaves(tape.begin), *tape.data.tracked.values())}
    if segment.span.initial is not None:
        ours |= {id(leaf) for leaf in _tree.leaves(segment.span.initial.leaves)}
    found = {id(leaf): leaf for leaf in seen.leaves.values()}
    roots = [tape.losses, *_tree.leaves(tape.end)]
    nodes = deque(root.grad_fn for root in roots if root is not None and root.grad_fn is not None)
    known = set(nodes)
    while nodes and len(known) < NODES:
        node = nodes.popleft()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        following = [n for n, _ in node.next_functions if n is not None and n not in known]
        known.update(following)
        nodes += dict.fromkeys(following)
    return [leaf for key, leaf in found.items() if key not in ours], not nodes
