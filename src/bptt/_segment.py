"""A segment: contiguous steps recorded as one graph, with a forward and a vjp; equation (1) of the design.

    c_t = ∂l_t/∂s_t + w_{t+1} · c_{t+1} · ∂s_{t+1}/∂s_t                                   (1)
    dL/dθ = Σ_t c_t · ∂F_t/∂θ                                                             (2)

Autograd does the chain rule inside a call of the recurrence; what is ours are the boundaries between calls, where the
weight w_t, the clip of the second term, and the rows that reset act on the state.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt import _boundary, _errors, _masks, _recurrence, _tree
from bptt._loss import StepLoss
from bptt._masks import Sheltered, blocked
from bptt._recurrence import Recurrence
from bptt._snapshot import Snapshot, isolated
from bptt._stream import Data, Timeline
from bptt._tree import Tree
from bptt._window_loss import WindowLoss
from bptt.strategies.windows import Window


@dataclass(frozen=True)
class Problem:
    """What every segment of a run shares: model, loss, and which axes are time and rows."""

    model: Recurrence
    loss: StepLoss | WindowLoss
    time_dim: int
    batch_dim: Any
    clip: Any
    params: list[Tensor] | None
    native_start: bool
    native_weight: bool
    from_none: bool


@dataclass(frozen=True)
class Initial:
    """The initial state as one window sees it: the user's value, and fresh leaves that collect its cotangents."""

    value: Tree
    leaves: Tree


@dataclass(frozen=True)
class Span:
    """A window in its place: the stream as it sees it, the detached state before it, the initial state that it uses.

    enter: makes the state before it the one that its graph begins with, if cotangents pass on to parameters there.
    """

    problem: Problem
    time: Timeline | Sheltered
    window: Window
    begin: Tree
    initial: Initial | None
    enter: Callable[[Tree], Tree] | None = None

    @cached_property
    def like(self) -> Tree:
        """A state of the right shapes: the one before the window, or after its first step if there is none yet."""
        if not self.problem.from_none or self.begin is not None:
            return self.begin
        with isolated(self.problem.model, self.tensors):
            return Segment(self, self.window.start, self.window.start + 1).advance(None).after

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors of the computation, whose devices' noise is restored."""
        return [*_tree.leaves(self.begin), *_tree.leaves(self.time.inputs_at(self.window.start))]

    def segments(self, length: int, replays: bool) -> list["Segment"]:
        """The window in segments of that many steps; the last one may be shorter."""
        found: list[Segment] = []
        for a in range(self.window.start, self.window.stop, length):
            before = found[-1] if found else None
            found.append(Segment(self, a, min(a + length, self.window.stop), before=before, replays=replays))
        return found


class Unfolded(NamedTuple):
    """Outputs of some steps, the state after them with and without its graph, and the state at the window's `keep`."""

    outputs: Tree
    end: Tree
    after: Tree
    kept: Tree


class Segment:
    """Steps [start, stop) of a window; one call of the recurrence between two of its cuts, one of the loss in all.

    reaches_all: whether its backward pass goes through outputs without a loss too, for a wrapper that waits for them.
    """

    def __init__(
        self,
        span: Span,
        start: int,
        stop: int,
        cuts: Iterable[int] | None = None,
        before: "Segment | None" = None,
        replays: bool = False,
    ) -> None:
        self.span, self.problem, self.time, self.window = span, span.problem, span.time, span.window
        self.start, self.stop = start, stop
        self.before, self.replays = before, replays
        self.reaches_all = False
        self._snapshot: Snapshot | None = None
        within = sorted(cut for cut in (self._cuts() if cuts is None else cuts) if start < cut < stop)
        self.calls = list(pairwise([start, *within, stop]))

    def _cuts(self) -> set[int]:
        """The steps at which one call has to end and the next begin, since a boundary acts between calls."""
        p = self.problem
        cuts = {self.window.keep}
        if p.clip is not None:
            cuts.update(range(self.start, self.stop))
        if not p.native_weight:
            cuts.update(self.window.weights)
        if not p.native_start:
            resets = self.time.resets(self.start, self.stop)
            cuts.update(resets, (t + 1 for t in resets if p.from_none))
        return cuts

    def advance(self, carried: Tree) -> Unfolded:
        """Run the segment from `carried`, without a graph and without a loss."""
        with torch.no_grad():
            return self.unfold(carried, self.time.read(self.start, self.stop))

    def tape(self, carried: Tree, grad: bool = True) -> "Tape":
        """Run the segment from `carried`: as one graph, from fresh leaves (`_tree.tracked`), or without a graph."""
        with torch.set_grad_enabled(grad):
            data, enter = self.time.read(self.start, self.stop), self.span.enter
            unfolded = self.unfold(carried if enter is None or self.start > self.window.start else enter(carried), data)
            losses, mask, aux, outputs = None, None, None, None
            silent = unfolded.outputs if self.reaches_all and self.stop <= self.window.first else None
            if isinstance(self.problem.loss, StepLoss):
                losses, mask, aux = self._losses(self.problem.loss, unfolded.outputs, data)
            else:
                outputs = self.of_losses(unfolded.outputs)
        return Tape(self, carried, *unfolded[1:], losses, mask, aux, data, outputs, silent)

    def of_losses(self, outputs: Tree) -> Tree:
        """The outputs of those steps of the segment that have a loss; None if there are none."""
        first = max(self.start, self.window.first)
        n = self.stop - first
        return _tree.narrow(outputs, self.problem.time_dim, first - self.start, n) if n > 0 else None

    @contextmanager
    def _repeatable(self) -> Iterator[None]:
        """A block that calls the recurrence: noise and buffers are recorded the first time, and restored later."""
        if not self.replays:
            yield
        elif self._snapshot is None:
            tensors = _tree.leaves(self.time.read(self.start, self.start + 1).inputs)
            self._snapshot = Snapshot(self.problem.model, tensors, self.before._snapshot if self.before else None)
            yield
        else:
            with self._snapshot.installed():
                yield

    def unfold(self, carried: Tree, data: Data) -> Unfolded:
        """Run all steps from `carried`, call by call."""
        torch.clear_autocast_cache()  # weights cast under no_grad carry no graph, and those of a freed one are stale
        p, given = self.problem, carried
        outputs: list[Tree] = []
        kept: Tree = None
        parts = _tree.split(data.inputs, p.time_dim, [b - a for a, b in self.calls])
        if data.is_start is not None and p.batch_dim is not None and carried is not None:
            _boundary.rows_of_state(carried, data.is_start[0], p.batch_dim)
        with self._repeatable():
            for (a, b), inputs in zip(self.calls, parts, strict=True):
                rows = None if data.is_start is None else data.is_start[a - self.start : b - self.start]
                carried = self._boundary(a, carried, rows)
                y, carried = self._call(a, b, inputs, carried, rows)
                outputs.append(y)
                if b == self.window.keep and b < self.stop:
                    kept = _tree.compact(_boundary.raised(carried, given))
        carried = _boundary.raised(carried, given)
        after = _tree.compact(carried)
        kept = after if self.window.keep == self.stop else kept
        return Unfolded(_tree.join(outputs, p.time_dim), carried, after, kept)

    def _call(self, a: int, b: int, inputs: Tree, carried: Tree, rows: Tensor | None) -> tuple[Tree, Tree]:
        """Outputs and state of steps [a, b) in one call; in two if single rows reset and the state starts from None."""
        p = self.problem
        fresh = p.from_none and not p.native_start and rows is not None and bool(self.time.resets(a, a + 1))
        if fresh and rows is not None and carried is not None and not rows[0].all():
            (y, after), anew = (self._call(a, b, inputs, before, None) for before in (carried, None))
            _boundary.rows_of_state(after, rows[0], p.batch_dim)
            dims = _tree.map_leaves(lambda leaf: 1 - p.time_dim if leaf.dim() > 1 else None, y)
            y = _tree.replace_rows(y, anew[0], rows[0], dims)
            return y, _tree.replace_rows(after, anew[1], rows[0], p.batch_dim)
        carried = None if fresh else carried
        y, after = _recurrence.called(p.model, inputs, carried, self._native(a, b, rows, carried), a, b)
        _recurrence.check_outputs(y, b - a, p.time_dim)
        if carried is None:
            _boundary.batch_dim(p.batch_dim, after, p.clip)
        return y, after

    def _boundary(self, t: int, carried: Tree, rows: Tensor | None) -> Tree:
        """The state before step t as step t sees it: gated by the clip and by w, its starting rows reset."""
        p = self.problem
        if p.clip is not None:
            carried = _boundary.clip(carried, p.clip, p.batch_dim)
        if t in self.window.weights and t > self.window.start and not p.native_weight:
            carried = _boundary.gate(carried, self.window.weights[t], p.batch_dim)
        if rows is not None and not p.native_start and not p.from_none and self.time.resets(t, t + 1):
            assert self.span.initial is not None
            _boundary.rows_of_state(carried, rows[0], p.batch_dim)
            carried = _tree.replace_rows(carried, self.span.initial.leaves, rows[0], p.batch_dim)
        return carried

    def _native(self, a: int, b: int, rows: Tensor | None, carried: Tree) -> dict[str, Tensor]:
        """`is_start` and `cotangent_weight` of a call, if the recurrence takes them and there are any."""
        keywords = {}
        if self.problem.native_start and rows is not None and self.time.resets(a, b):
            keywords["is_start"] = rows
        weights = self.window.weights
        if self.problem.native_weight and weights and any(t in weights for t in range(a + 1, b + 1)):
            like = next((leaf for leaf in _tree.leaves(carried) if _tree.carries_cotangent(leaf)), torch.zeros(()))
            entries = [weights.get(t, 1.0) for t in range(a + 1, b + 1)]
            if any(isinstance(w, Tensor) for w in entries):
                each = [torch.as_tensor(w, dtype=like.real.dtype, device=like.device) for w in entries]
                keywords["cotangent_weight"] = torch.stack(torch.broadcast_tensors(*each))
            else:
                keywords["cotangent_weight"] = torch.tensor(entries, dtype=like.real.dtype, device=like.device)
        return keywords

    def _losses(self, loss: StepLoss, outputs: Tree, data: Data) -> tuple[Tensor | None, Tensor | None, Tree]:
        """The losses (n, ...) as the user's function gives them, the mask over their first axes, and aux."""
        p, first = self.problem, max(self.start, self.window.first)
        n = self.stop - first
        if n <= 0:
            return None, None, None
        targets, mask = data.targets, data.mask
        if first > self.start:
            outputs, targets = (_tree.narrow(tree, p.time_dim, first - self.start, n) for tree in (outputs, targets))
            mask = None if mask is None else mask[first - self.start :]
        if mask is not None and self.time.masked(first, self.stop):
            outputs, targets = (blocked(tree, mask, p.time_dim) for tree in (outputs, targets))
        losses, aux = loss(outputs, targets, n)
        return losses, None if mask is None else _masks.check_fits(mask, losses).to(losses.device), aux


class Losses(NamedTuple):
    """Losses (n, ...) of a segment without their graph, how many steps count, and aux."""

    values: Tensor
    valid: Any
    aux: Tree

    def total(self) -> Tensor:
        """The sum over time of the mean over all other axes, in float32 at least."""
        total = self.values.sum(dtype=torch.promote_types(self.values.dtype, torch.float32))
        rest = self.values.numel() // self.values.shape[0]
        return total if rest == 1 else total / rest


@dataclass(frozen=True)
class Tape:
    """A segment's graph: from the state it begins with to its losses and the state it ends in, as in `Unfolded`.

    outputs: of the steps with a loss, for a loss over the window, which is taken elsewhere; else None.
    silent: the outputs of all steps, if none has a loss and the vjp must still reach all parameters, with zeros; else
        None.
    """

    segment: Segment
    begin: Tree
    end: Tree
    after: Tree
    kept: Tree
    losses: Tensor | None
    mask: Tensor | None
    aux: Tree
    data: Data
    outputs: Tree
    silent: Tree

    def counted(self, values: Tensor) -> Tensor:
        """`values` in the shape of the losses, weighed by the mask: 0 where it leaves a loss out."""
        return values if self.mask is None else _tree.weighed(values, self.mask)

    def seed(self, factor: Any = 1, divisor: Any = 1) -> Tensor:
        """The cotangent of the losses: factor / divisor a step, averaged over all axes but time."""
        assert self.losses is not None
        each = divisor * (self.losses.numel() // self.losses.shape[0])
        if not isinstance(factor, Tensor) and not isinstance(divisor, Tensor):
            _check_scale(factor / each, self.losses.dtype)
        if isinstance(factor, Tensor) or isinstance(divisor, Tensor):
            return self.counted(torch.ones_like(self.losses).mul_(factor).div_(each))
        return self.counted(torch.full_like(self.losses, factor / each))

    def found(self, brief: bool = False) -> "Losses":
        """The losses without their graph; `brief` keeps one number per step, for when many segments are waiting."""
        assert self.losses is not None
        valid = self.segment.problem.loss.weight(self.data.targets, self.mask, self.losses.shape[0], self.losses)
        values = self.counted(self.losses.detach())
        return Losses(values.flatten(1).mean(1) if brief and values.dim() > 1 else values, valid, self.aux)

    def roots(
        self,
        cotangent: list[Tensor | None] | None,
        factor: Any = 1,
        divisor: Any = 1,
        of_outputs: Sequence[Tensor | None] = (),
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the vjp starts from, losses or outputs and `end`, and the cotangents there; arguments as in `pull`."""
        roots: list[Tensor] = []
        cotangents: list[Tensor] = []
        if self.losses is not None and self.losses.requires_grad:
            roots.append(self.losses)
            cotangents.append(self.seed(factor, divisor))
        for value in _tree.leaves(self.silent):
            if value.requires_grad:
                roots.append(value)
                cotangents.append(torch.zeros_like(value))
        end = _tree.leaves(self.end)
        pairs = [*zip(_tree.leaves(self.outputs), of_outputs, strict=bool(of_outputs))]
        for value, c in (*pairs, *zip(end, cotangent or [None] * len(end), strict=True)):
            if c is not None and value.requires_grad:
                roots.append(value)
                cotangents.append(c)
        return roots, cotangents

    def pull(
        self, cotangent: list[Tensor | None] | None, factor: Any, divisor: Any, of_outputs: Sequence[Tensor | None] = ()
    ) -> list[Tensor | None]:
        """The vjp: (1) from the cotangent of `end` and ∂Σl/∂s to that of `begin`; (2) goes into `.grad`.

        cotangent: one tensor or None per leaf of `end`; None for the last segment of a window.
        factor, divisor: each step's loss is multiplied by the one and divided by the other; both may be tensors.
        of_outputs: the cotangents of `outputs`.
        """
        roots, cotangents = self.roots(cotangent, factor, divisor, of_outputs)
        if roots:
            try:
                torch.autograd.backward(roots, cotangents, inputs=self._wanted())
            except RuntimeError as error:
                _explain(error)
                raise
        self.segment.time.collect(self.segment.start, self.segment.stop, self.data)
        return _tree.cotangents(self.begin)

    def _wanted(self) -> list[Tensor] | None:
        """The leaves to stop at: all there are, or under `params=` those and our own."""
        params, initial = self.segment.problem.params, self.segment.span.initial
        if params is None:
            return None
        ours = [
            *_tree.leaves(self.begin),
            *_tree.leaves(initial.leaves if initial else None),
            *self.data.tracked.values(),
        ]
        return [*params, *(leaf for leaf in ours if leaf.requires_grad)]


def _explain(error: RuntimeError) -> None:
    """Explain errors of torch's backward pass by what the recurrence or the loss does."""
    said = str(error)
    if "second time" in said:
        error.add_note(
            "bptt: the engine uses no graph twice, so the model or the loss holds a tensor whose graph was made "
            "outside: make it inside, or detach it."
        )
    elif "inplace operation" in said:
        raise _errors.CallError(
            "the recurrence or the loss changes a tensor in place that the backward pass needs, such as the state it "
            f"is given: make it return a new one. torch: {said.splitlines()[0].split(': ')[0]}."
        ) from error
    elif type(error) is RuntimeError and "dtype" in said:
        outputs = "the outputs' dtype, as some of torch's losses need"
        raise _errors.CallError(f"the backward pass fails: {error} Give targets {outputs}.") from error


def _check_scale(seed: float, dtype: torch.dtype) -> None:
    """A factor on each loss that its dtype can hold."""
    if abs(seed) > torch.finfo(dtype).max:
        raise ValueError(
            f"scale= makes the gradient of a loss {seed:.3g}, more than {dtype} holds: use a smaller scale."
        )
