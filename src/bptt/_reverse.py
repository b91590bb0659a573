"""A window run backward under a checkpoint schedule: equation (1) from segment to segment.

Without a budget the window is one segment, so the schedule is one vjp: one graph and one backward call.
"""

from cmath import isfinite
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt
from typing import Any, NoReturn

import torch
from torch import Tensor

from bptt import _loss, _torch, _tree
from bptt._checkpoint import Checkpoints
from bptt._errors import NonFiniteError, NonFiniteGradientError
from bptt._guard.reached import in_sight
from bptt._idle import touch
from bptt._masks import Sheltered, blocked
from bptt._memory import Budget, Meter
from bptt._ranks import Ranks
from bptt._rewind import Rewind
from bptt._segment import Losses, Problem, Segment, Span
from bptt._snapshot import isolated
from bptt._torch import unwrapped
from bptt._tree import Tree
from bptt._window_loss import WindowLoss, check_value
from bptt.strategies.windows import Window


class Gradients:
    """The `.grad`s that a window adds to: noted before, checked after, and restored if something isn't finite.

    watched: False under loss scaling, where the scaler looks for overflow.
    """

    def __init__(self, problem: Problem, watched: bool) -> None:
        self._problem, self.watched = problem, watched
        self._before: list[tuple[Tensor, Tensor | None, Tensor | None]] | None = None

    @cached_property
    def leaves(self) -> list[Tensor]:
        """The tensors that may get a gradient: `params=`, or what model and loss hold or close over."""
        p = self._problem
        found = in_sight((unwrapped(p.model), p.loss.loss), {}) if p.params is None else p.params
        return [leaf for leaf in found if leaf.is_leaf and leaf.requires_grad]

    @contextmanager
    def added(self, still: bool) -> Iterator[None]:
        """A block that adds to them. still: it is one of a window's several, between which no parameter may change."""
        if self._before is None:
            before = [(p, p.grad) for p in self.leaves]
            self._before = [(p, grad, None if grad is None else grad.clone()) for p, grad in before]
        versions = sum(map(_torch.version, self.leaves)) if still else 0
        yield
        if still and versions != sum(map(_torch.version, self.leaves)):
            raise ValueError(
                "the parameters changed in the middle of a window's backward pass, so an optimiser steps in a hook: "
                "memory= takes several backward calls per window. Step between updates, or give memory=None."
            )

    def forget(self) -> None:
        """Forget what was noted: the next window begins from the gradients that it finds."""
        self._before = None

    def put_back(self) -> None:
        """Restore everything that was noted."""
        for p, grad, values in self._before or ():
            if grad is not None and values is not None and grad.layout == torch.strided:
                grad.copy_(values)
                values = grad
            p.grad = values

    def finite(self) -> bool:
        """Whether all gradients are finite, judged by one sum first: the second synchronisation of an update."""
        if self._before is None:
            return True
        found = [_plain(grad) for p, *_ in self._before if (grad := p.grad) is not None and not grad.is_meta]
        return not found or _sum_is_finite(found) or all(bool(torch.isfinite(grad).all()) for grad in found)


def _plain(grad: Tensor) -> Tensor:
    """The numbers of a gradient that may be sparse, or spread over processes."""
    if grad.layout == torch.sparse_coo:
        return grad.coalesce().values()
    return grad if type(grad) is Tensor else getattr(grad, "to_local", lambda: grad)()


def _sum_is_finite(found: list[Tensor]) -> bool:
    """A sum is finite only if all its terms are, but a sum of finite terms may overflow."""
    sums = [grad.sum() for grad in found]
    device = sums[0].device
    return isfinite(torch.stack([part if part.device == device else part.to(device) for part in sums]).sum().item())


class Objective:
    """A window's loss by `per_window`, taken once on all its outputs, and the outputs' cotangents, by step."""

    def __init__(self, span: Span, outputs: Tree, grad: bool = True) -> None:
        """outputs: of the window's steps with a loss. grad: whether any cotangents are wanted."""
        p, window = span.problem, span.window
        assert isinstance(p.loss, WindowLoss)
        self._span, self.outputs = span, _tree.tracked(outputs)
        with torch.set_grad_enabled(grad):
            self._data = span.time.read(window.first, window.stop)
            outputs, targets, mask = self.outputs, self._data.targets, self._data.mask
            if mask is not None and span.time.masked(window.first, window.stop):
                outputs, targets = (blocked(tree, mask, p.time_dim) for tree in (outputs, targets))
            self._value, aux = p.loss(outputs, targets, mask)
        self.differentiable = self._value.requires_grad
        self.found = Losses(self._value.detach().reshape(1), 1, aux)

    def pull(self, factor: Any) -> None:
        """The cotangents, and the gradient of the loss's own parameters, for factor · loss."""
        if self.differentiable:
            params, ours = self._span.problem.params, [*_tree.leaves(self.outputs), *self._data.tracked.values()]
            wanted = None if params is None else [*params, *(leaf for leaf in ours if leaf.requires_grad)]
            seed = torch.ones_like(self._value) * factor
            torch.autograd.backward([self._value], [seed.to(self._value.dtype)], inputs=wanted)
        self._span.time.collect(self._span.window.first, self._span.window.stop, self._data)
        del self._value, self._data

    def of(self, segment: Segment) -> list[Tensor | None]:
        """The cotangents of a segment's outputs."""
        a, dim = max(segment.start, self._span.window.first), self._span.problem.time_dim
        grads, n = _tree.cotangents(self.outputs), segment.stop - a
        return [g if g is None else g.narrow(dim, a - self._span.window.first, n) for g in grads] if n > 0 else []


def _looked_ahead(span: Span, segments: list[Segment]) -> Objective:
    """The objective of a window of several segments, from a pass without a graph that keeps the outputs."""
    carried, outputs = span.begin, []
    for segment in segments:
        found, _, carried, _ = segment.advance(carried)
        if segment.stop > span.window.first:
            outputs.append(_tree.map_leaves(torch.clone, segment.of_losses(found)))
    return Objective(span, _tree.join(outputs, span.problem.time_dim))


@dataclass(frozen=True)
class Outcome:
    """What a window leaves behind: values, without a graph."""

    loss: Tensor
    valid: Any
    aux: Tree
    kept: Tree
    after: Tree
    cotangent: list[Tensor | None]
    forward_steps: int
    memory_bytes: float


def _planned(span: Span, memory: Checkpoints | Budget | None, ranks: Ranks) -> Checkpoints | None:
    """The schedule that a budget allows, measured on this rank alone."""
    with ranks.quiet():
        return memory.plan(span) if isinstance(memory, Budget) else memory


def run(
    span: Span,
    memory: Checkpoints | Budget | None,
    meter: Meter,
    factor: Any,
    divisor: Any,
    gradients: Gradients,
    look: Callable[[Segment, Tree, bool, bool], None],
    ranks: Ranks,
) -> Outcome:
    """Add the window's gradient to `.grad`.

    factor, divisor: on each step's loss. The losses are checked once, before the last backward call, which is the only
    one if the window is one segment; `gradients` is checked once, after it. ranks: who must agree on both; a wrapper
    averages gradients in that call alone. look: called before each segment, see `Guard.look`.
    Cost: the schedule's advances and one forward and backward of every segment.
    """
    window, plan = span.window, _planned(span, memory, ranks)
    length = plan.segment if plan else window.stop - window.start
    whole = window.start + length >= window.stop
    segments = span.segments(length, replays=not whole)
    key = None if plan else _kind(span, segments[0])
    rewind = Rewind(segments, plan.slots if plan else 1, span.begin)
    rewind.forward_steps, kept, after = _unfinished(span, length)
    segments[0].reaches_all, flush = bool(ranks.wrappers), ranks.flushes(len(segments[0].calls))
    by_window = span.problem.loss.by_window
    cotangent: list[Tensor | None] | None = None
    found: deque[Losses] = deque()
    memory_bytes, differentiable, refused = 0.0, False, None
    loss: Any = None
    measured = isinstance(memory, Budget) or rewind.forward_steps > 0
    objective = _looked_ahead(span, segments) if by_window and not whole else None
    rewind.forward_steps += (window.stop - window.start) * (objective is not None)

    for segment, carried in rewind:
        last = segment.start == window.start
        with ranks.quiet():
            look(segment, carried, whole, measured)
        with ranks.quiet(not last or flush):
            tape, saved = meter.tape(segment, carried, key)
            if tape.losses is not None:
                found.appendleft(tape.found(brief=not whole))
                differentiable |= tape.losses.requires_grad
            if by_window and objective is None:
                objective = Objective(span, tape.outputs)
            if objective is not None:
                found, differentiable = deque([objective.found]), objective.differentiable
            if last:
                loss, refused = _agreed(ranks, found, window, by_window)
            cotangents = 1 if cotangent is None else 2
            after = tape.after if after is None else after
            kept = tape.kept if kept is None else kept
            with gradients.added(still=not whole):
                if objective is not None and cotangents == 1:
                    objective.pull(factor)
                cotangent = tape.pull(cotangent, factor, divisor, objective.of(segment) if objective else ())
        if last and flush:
            touch(span)
        if refused is not None:
            raise refused
        held = saved + _beside(window, tape.after, rewind.states, cotangents)
        memory_bytes = max(held + (_tree.nbytes(objective.outputs) if objective else 0), memory_bytes)  # or NaN
        del tape

    _loss.check_some_gradient(differentiable)
    if gradients.watched and not ranks.fine(fine := gradients.finite()):
        refuse(span, gradients.leaves, factor, objective, ranks, fine)
    return Outcome(
        loss=loss,
        valid=sum(losses.valid for losses in found),
        aux=found[0].aux if by_window else _tree.join([losses.aux for losses in found], span.problem.time_dim),
        kept=kept,
        after=after,
        cotangent=cotangent or [],
        forward_steps=rewind.forward_steps + window.stop - window.start,
        memory_bytes=memory_bytes,
    )


def _kind(span: Span, segment: Segment) -> Any:
    """A key that is equal for windows of one segment whose graphs differ only in length."""
    window = span.window
    masked = isinstance(span.time, Sheltered) or span.time.masked(window.first, window.stop)
    return len(segment.calls), tuple(leaf.shape for leaf in _tree.leaves(span.begin)), masked


def _beside(window: Window, like: Tree, states: int, cotangents: int) -> int:
    """Bytes held beside a graph: stored states, the one at `keep`, the last one, and cotangents."""
    floating = sum(leaf.nbytes for leaf in _tree.leaves(like) if _tree.carries_cotangent(leaf))
    between = window.start < window.keep < window.stop
    return (states + between + 1) * _tree.nbytes(like) + cotangents * floating


def _unfinished(span: Span, length: int) -> tuple[int, Tree, Tree]:
    """(steps run, state at `keep`, at `stop`), by a pass without a graph if rows are dead there; None: unknown yet."""
    if not isinstance(span.time, Sheltered) or not span.time.unfinished:
        return 0, span.begin if span.window.keep == span.window.start else None, None
    span = replace(span, problem=replace(span.problem, clip=None), time=span.time.whole)
    kept, after = None, span.begin
    with isolated(span.problem.model, span.tensors):
        for segment in span.segments(length, replays=False):
            _, _, after, at_keep = segment.advance(after)
            kept = at_keep if kept is None else kept
    return span.window.stop - span.window.start, span.begin if kept is None else kept, after


def total_of(found: Sequence[Losses]) -> Tensor:
    """The sum of the losses of segments."""
    return found[0].total() if len(found) == 1 else torch.stack([losses.total() for losses in found]).sum()


def _agreed(
    ranks: Ranks, found: Sequence[Losses], window: Window, by_window: bool
) -> tuple[Tensor, NonFiniteError | None]:
    """The sum of the losses; and the error where one isn't finite on some rank: at once, or after a wrapper's backward.

    found: the losses of consecutive segments, the first of them at `window.first`. A wrapper waits for the backward
    pass that belongs to its forward pass, so all ranks then make it.
    """
    error, total = None, total_of(found)
    try:
        if by_window:
            check_value(found[0].values, window.first, window.stop)
        else:
            _loss.check_finite(total, (losses.values for losses in found), window.first)
    except NonFiniteError as wrong:
        error = wrong
    try:
        ranks.settle(error)
    except NonFiniteError as wrong:
        if not ranks.wrappers:
            raise
        return total, wrong
    return total, None


def refuse(
    span: Span, leaves: list[Tensor], factor: Any, objective: Objective | None, ranks: Ranks, fine: bool
) -> NoReturn:
    """Raise NonFiniteGradientError with the step at which the gradient of a window stops being finite.

    fine: whether this rank's gradient is finite, and only another rank's isn't.
    """
    a, step = span.window.start, None
    if not fine and not ranks.talks:
        with ranks.quiet():
            step = _culprit(span, leaves, factor, objective)
    where = f"from step {step} on the way back" if step is not None else "although that of each single step is"
    error = NonFiniteGradientError(
        f"the gradient of steps {a} to {span.window.stop - 1} isn't finite {where}, though the losses are: no update "
        f"was made from it, and .grad is as before. Look at that step's derivative and at bptt.diagnose.",
        a if step is None else step,
    )
    ranks.found(error, step is not None)


def _culprit(span: Span, leaves: list[Tensor], factor: Any, objective: Objective | None) -> int | None:
    """The first step on the way back whose vjp isn't finite, by calls of one step each; None if these show nothing."""
    problem, steps = span.problem, span.window.stop - span.window.start
    with isolated(problem.model, span.tensors), isolated(problem.loss.loss, []):
        cotangent: list[Tensor | None] | None = None
        try:
            for segment, carried in Rewind(span.segments(1, replays=True), 2 * isqrt(steps) + 1, span.begin):
                tape = segment.tape(_tree.tracked(carried))
                roots, cotangents = tape.roots(cotangent, factor, 1, objective.of(segment) if objective else ())
                own = _tree.leaves(tape.begin)
                asked = [leaf for leaf in (*own, *leaves) if leaf.requires_grad]
                found = torch.autograd.grad(roots, asked, cotangents, allow_unused=True) if roots else ()
                if any(grad is not None and not torch.isfinite(_plain(grad)).all() for grad in found):
                    return segment.start
                reached = dict(zip(map(id, asked), found, strict=False))
                cotangent = [reached.get(id(leaf)) for leaf in own]
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None  # a recurrence that can't be called on one step
    return None
