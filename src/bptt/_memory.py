"""Memory budgets: what a user may write for `memory=`, and the bytes a window holds for its backward pass."""

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _checkpoint, _torch, _tree
from bptt._checkpoint import Checkpoints
from bptt._errors import BudgetError
from bptt._segment import Segment, Span, Tape
from bptt._snapshot import Noise, buffers_of, isolated
from bptt._tree import Tree


class Meter:
    """Bytes held for a backward pass: storages that autograd saved, each once, and stored states and cotangents.

    Parameters, buffers, the stream's own chunks and the gradients don't count. Tensors are counted as they are saved,
    since the graph of many steps can't be walked from Python: freeing the objects of a long chain recurses.
    """

    def __init__(self, modules: Iterable[Any]) -> None:
        self._modules = tuple(modules)
        self._apart: list[Tensor] = [
            tensor
            for module in self._modules
            if isinstance(module, nn.Module)
            for tensor in (*module.parameters(), *module.buffers())
        ]
        self._watches = True
        self._proven = False
        self._saved: defaultdict[Any, _Line] = defaultdict(_Line)

    def tape(self, segment: Segment, begin: Tree, key: Any = None) -> tuple[Tape, float]:
        """A tape from the state `begin`, and the bytes autograd saved for it beside the states it begins and ends in.

        key: equal for tapes that differ in their length only; what is known is not measured again. None: always.
        The bytes are NaN where the recurrence or the loss calls what refuses hooks on saved tensors.
        """
        line, steps = None if key is None else self._saved[key], segment.stop - segment.start
        known = None if line is None else line.at(steps)
        if known is not None:
            return segment.tape(_tree.tracked(begin)), known
        watched = self._watched(segment, begin) if self._watches else None
        if watched is None:
            return segment.tape(_tree.tracked(begin)), math.nan
        tape, seen = watched
        counted = (*_tree.leaves(tape.begin), *_tree.leaves(tape.after), *_tree.leaves(tape.kept))
        # The stream's own chunks, joined from several or not.
        stream = (*_tree.leaves(tape.data.inputs), *_tree.leaves(tape.data.targets))
        apart = seen.parameters(segment).union(*map(_storages, (*self._apart, *counted, *stream)))
        saved = sum(size for storage, size in seen.storages.items() if storage not in apart)
        if line is not None:
            line.add(steps, saved)
        return tape, saved

    def held(self, segment: Segment, begin: Tree, size: int, key: Any = None) -> int:
        """The bytes of `tape`, to keep within a budget of `size` bytes; raises ValueError if they can't be seen."""
        saved = self.tape(segment, begin, key)[1]
        if math.isnan(saved):
            raise ValueError(
                f"memory={size}: a budget in bytes needs to see what autograd saves, which torch.func's transforms in "
                f"the model or the loss forbid. Use memory=bptt.Checkpoints(slots, segment) or None."
            )
        return int(saved)

    def _watched(self, segment: Segment, begin: Tree) -> "tuple[Tape, Seen] | None":
        """A tape and what it saved; None if watching is refused: all is then as before, and isn't watched again."""
        seen, before = Seen(), dict(vars(segment))
        put_back = None if self._proven else _remembered(self._modules, begin, segment)
        try:
            with seen.watching():
                tape = segment.tape(_tree.tracked(begin))
        except (RuntimeError, ValueError) as error:
            if not _refuses_hooks(error):
                raise
        else:
            self._proven = True
            return tape, seen
        self._watches = False
        vars(segment).update(before)
        if put_back is not None:
            put_back()
        return None


class _Line:
    """Bytes by length: as measured, or between two lengths if a third has shown that they lie on a line."""

    def __init__(self) -> None:
        self._points: dict[int, int] = {}
        self._straight = False

    def at(self, steps: int) -> int | None:
        if steps in self._points or not self._straight:
            return self._points.get(steps)
        return self._between(steps) if min(self._points) < steps < max(self._points) else None

    def add(self, steps: int, saved: int) -> None:
        self._points[steps] = saved
        self._straight = len(self._points) > 2 and all(self._between(n) == self._points[n] for n in self._points)

    def _between(self, steps: int) -> int:
        a, b = min(self._points), max(self._points)
        return self._points[a] + (self._points[b] - self._points[a]) * (steps - a) // (b - a)


class Seen:
    """What autograd saved in a block: `storages` by identity, with their bytes, and the leaves among them."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.leaves: dict[int, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note every storage that the forward pass saves in the block."""
        outer = _torch.saved_tensors_hooks()  # hooks don't stack by themselves
        pack_outer, unpack_outer = outer or (None, _unpacked)
        storages = self.storages

        def pack(tensor: Tensor) -> Any:
            try:
                storage = tensor.untyped_storage()
                key = _torch.identity(storage)
                if key not in storages:
                    storages[key] = storage.nbytes()
                    root = _torch.base(tensor)  # a layer's weight is saved transposed
                    if root.is_leaf and root.requires_grad:
                        self.leaves[key] = root
            except NotImplementedError:  # a sparse tensor is made of dense ones
                storages.update(_storages(tensor))
            # never the tensor itself, which would tie a cycle through its own graph
            return (tensor.detach(), _torch.version(tensor)) if pack_outer is None else pack_outer(tensor)

        _torch.skip_compiling(pack, _storages, _unpacked)  # otherwise a compiled model would have the hook compiled too
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack_outer):
            yield

    def parameters(self, segment: Segment) -> set[int]:
        """The storages of the leaves that aren't the engine's own: parameters, of closures too."""
        initial = segment.span.initial
        ours = {id(leaf) for leaf in _tree.leaves(initial.leaves if initial else None)}
        return {storage for storage, leaf in self.leaves.items() if id(leaf) not in ours}


def _unpacked(packed: tuple[Tensor, int]) -> Tensor:
    """The tensor that was saved; the check of its version that autograd makes where there are no hooks."""
    tensor, version = packed
    if (now := _torch.version(tensor)) != version:
        raise RuntimeError(
            f"one of the variables needed for gradient computation has been modified by an inplace operation: a tensor "
            f"of shape {tuple(tensor.shape)} is at version {now}; expected version {version} instead."
        )
    return tensor


def _storages(tensor: Tensor) -> dict[int, int]:
    """Identity and bytes of a tensor's storage, or of those that a sparse one is made of."""
    storages = [part.untyped_storage() for part in _torch.dense_parts(tensor)]
    return {_torch.identity(storage): storage.nbytes() for storage in storages}


def _refuses_hooks(error: BaseException) -> bool:
    """Whether this is the error of torch.func.grad and its like where hooks on saved tensors are set."""
    said = [str(each) for each in (error, error.__cause__) if isinstance(each, RuntimeError)]
    return any("saved tensor" in text and "hooks" in text for text in said)


def _remembered(modules: Iterable[Any], begin: Tree, segment: Segment) -> Callable[[], None]:
    """A function that restores noise and buffers as they are now, after a first attempt that failed."""
    noise = Noise.now([*_tree.leaves(begin), *_tree.leaves(segment.time.inputs_at(segment.start))])
    own = [(m, name, b, _torch.version(b), b.clone()) for model in modules for m, name, b in buffers_of(model)]

    def put_back() -> None:
        noise.install()
        for module, name, value, version, copy in own:
            _torch.buffers(module)[name] = value
            if _torch.version(value) != version:
                with torch.no_grad():
                    value.copy_(copy)

    return put_back


CALL = 16
"""What one call of a recurrence costs beside its steps, in steps; a rule of thumb against tiny segments."""


class Budget:
    """`memory="512MiB"`: plans by what was measured, and measures what it plans before it runs.

    beside: the bytes of the budget that are held beside windows, for what is carried from one to the next.
    """

    def __init__(self, size: int, meter: Meter) -> None:
        self.size, self.beside, self._meter = size, 0, meter
        self._saved: dict[str, _Saved] = {}
        self._plans: dict[tuple[int, str], Checkpoints] = {}

    def state(self) -> dict[str, Any]:
        """What was measured and planned, as lists and numbers: a resumed run plans as this one would."""
        plans = [[*key, plan.slots, plan.segment] for key, plan in self._plans.items()]
        return {"plans": plans, "saved": {key: saved.state() for key, saved in self._saved.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._plans = {(steps, shapes): Checkpoints(*rest) for steps, shapes, *rest in state["plans"]}
        self._saved = {key: _Saved(*values) for key, values in state["saved"].items()}

    def plan(self, span: Span) -> Checkpoints:
        """The checkpoints for a window; raises BudgetError if this budget is too small."""
        try:
            return self._within(span, self.size - self.beside)
        except BudgetError as error:
            if not self.beside:
                raise
            least = error.least + self.beside
            raise BudgetError(
                f"memory={self.size} can't hold the influence ∂s/∂θ, {self.beside} bytes, and a segment of one step: "
                f"the least that works here is memory={least}.",
                least,
            ) from None

    def _within(self, span: Span, size: int) -> Checkpoints:
        """The checkpoints by which a window takes at most that many bytes."""
        probe = WindowProbe(span, self._meter, size)
        key = (probe.steps, probe.shapes)
        if not probe.cuts and key in self._plans:
            return self._plans[key]
        with isolated(span.problem.model, _tree.leaves(span.begin)):
            saved = self._saved.setdefault(probe.shapes, _Saved())
            saved.measure(probe, size)
            chosen = cheapest(probe, size, saved)
            while saved.correct(probe, chosen.segment):
                chosen = cheapest(probe, size, saved)
        if not probe.cuts:  # calls are cut at different places in each window
            self._plans[key] = chosen
        return chosen


class _Saved:
    """Bytes that a tape saves, by its steps and joints: measured points, straight lines between and beyond them.

    Affine in the steps for most models; kernels that change with the length bend the line, so lengths double until
    the budget is reached. Cuts between calls and resets are added, each at the highest cost seen.
    """

    def __init__(self, points: Any = (), by_cut: float = 0.0, by_reset: float = 0.0, known: Any = ()) -> None:
        self._points: dict[int, float] = dict(points)
        self._by_cut, self._by_reset = by_cut, by_reset
        self._known: set[tuple[int, int, int]] = {(steps, cuts, resets) for steps, cuts, resets in known}

    def state(self) -> list[Any]:
        """What it can be made from again."""
        return [[list(point) for point in self._points.items()], self._by_cut, self._by_reset, sorted(self._known)]

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
        """Measure one step, and twice as many while they promise to fit; two steps in two calls; one that resets."""
        if not self._points:
            self._points[1] = self._by_cut = probe.saved(0, 1, [])
        if probe.resets and not self._by_reset:
            t = probe.resets[-1]
            self._by_reset = max(0, probe.saved(t, t + 1) - self._points[1])
        while (last := max(self._points)) < probe.steps and self._joined(2 * last) + probe.states <= size:
            n = min(2 * last, probe.steps)
            self._points[n] = probe.saved(0, n, [])
            if n == 2 and 2 * self._points[1] + probe.states <= size:
                self._by_cut = max(0, probe.saved(0, n, [probe.span.window.start + 1]) - self._points[n])

    def correct(self, probe: "WindowProbe", segment: int) -> bool:
        """Measure the segments of a plan that are of a new kind; return whether one saves more than was expected."""
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
    """Tapes of pieces of a window, made only to be measured, from a state of the right shapes."""

    span: Span
    meter: Meter
    size: int

    @property
    def steps(self) -> int:
        return self.span.window.stop - self.span.window.start

    @cached_property
    def cuts(self) -> list[int]:
        """Where a call ends inside the window, counted from its start."""
        whole = Segment(self.span, self.span.window.start, self.span.window.stop)
        return [a - self.span.window.start for a, _ in whole.calls[1:]]

    @property
    def shapes(self) -> str:
        return str([(tuple(leaf.shape), str(leaf.dtype)) for leaf in _tree.leaves(self.span.like)])

    @property
    def states(self) -> int:
        """Bytes beside slots and saved tensors: three states (working, last, next window's) and two cotangents."""
        return 5 * _tree.nbytes(self.span.like)

    @cached_property
    def resets(self) -> list[int]:
        """The steps at which rows reset, counted from the window's start."""
        if self.span.problem.native_start:
            return []
        window = self.span.window
        return [t - window.start for t in self.span.time.resets(window.start, window.stop)]

    def kinds(self, segment: int) -> list[tuple[int, int, int]]:
        """(number, cuts inside, resets) of the first segment and of all that have any."""
        cuts = Counter(cut // segment for cut in self.cuts if cut % segment)
        resets = Counter(step // segment for step in self.resets)
        return [(number, cuts[number], resets[number]) for number in sorted({0, *cuts, *resets})]

    def saved(self, start: int, stop: int, cuts: list[int] | None = None) -> int:
        """Bytes saved by a tape of steps [start, stop) of the window with all their losses."""
        a, b = self.span.window.start + start, self.span.window.start + stop
        piece = replace(self.span.window, start=a, first=a, stop=b, keep=b)
        segment = Segment(replace(self.span, window=piece), a, b, cuts)
        return self.meter.held(segment, self.span.like, self.size)


def cheapest(probe: WindowProbe, size: int, saved: Callable[[int, int, int], float]) -> Checkpoints:
    """Among segment lengths a tenth apart, the one that fits and runs the fewest steps and calls.

    saved: bytes of a tape by its steps, cuts and resets.
    """
    one = max(1, _tree.nbytes(probe.span.like))

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
            cost = (_checkpoint.forward_steps(segments, room) + segments) * (segment + CALL)
            if best is None or cost < best[0]:
                best = cost, Checkpoints(room, segment)
            if segments == 1:
                break
        segment = min(segment - 1, int(segment / 1.1))
    if best is None:
        least = ceil(probe.states + fullest(1)) + one
        raise BudgetError(
            f"memory={size} can't hold a segment of one step: the least that works here is memory={least}.", least
        )
    return best[1]
