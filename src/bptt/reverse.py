"""A window run backward under a checkpoint schedule: equation (1) from segment to segment.

Without a budget the window is one segment, so the schedule is one vjp: one graph and one backward call.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bptt import checks, finite, state
from bptt.budget import Budget
from bptt.excluded import Sheltered
from bptt.finite import Gradients
from bptt.guard import Guard
from bptt.memory import Checkpoints, Meter
from bptt.replay import isolated
from bptt.rewind import Rewind
from bptt.schedules.windows import Window
from bptt.segment import Initial, Losses, Problem, Segment
from bptt.state import Tree


@dataclass(frozen=True)
class Outcome:
    """What a window leaves behind: no graph, only values."""

    loss: Tensor
    valid: Any
    aux: Tree
    kept: Tree
    after: Tree
    cotangent: list[Tensor | None]
    forward_steps: int
    memory_bytes: float


def run(
    problem: Problem,
    window: Window,
    begin: Tree,
    initial: Initial | None,
    memory: Checkpoints | Budget | None,
    meter: Meter,
    factor: Any,
    divisor: float,
    gradients: Gradients,
    guard: Guard,
) -> Outcome:
    """Add the window's gradient to `.grad`, from the detached state `begin` before its first step.

    factor, divisor: on each step's loss. The losses are checked once, before anything reaches `.grad` where the window
    is one segment; `gradients` once, after it has; `guard` before a segment. Cost: the schedule's advances and one
    forward and backward of every segment.
    """
    plan = memory.plan(problem, window, begin, initial) if isinstance(memory, Budget) else memory
    length = plan.segment if plan else window.stop - window.start
    whole = window.start + length >= window.stop
    segments: list[Segment] = []
    for a in range(window.start, window.stop, length):
        before = segments[-1] if segments else None
        b = min(a + length, window.stop)
        segments.append(Segment(problem, window, initial, a, b, before=before, replays=not whole))
    masked = isinstance(problem.time, Sheltered) or problem.time.masked(window.first, window.stop)
    key = None if plan else (len(segments[0].calls), tuple(x.shape for x in state.leaves(begin)), masked)
    one = state.nbytes(begin)
    floating = sum(state.nbytes(leaf) for leaf in state.leaves(begin) if state.carries_cotangent(leaf))
    between = window.start < window.keep < window.stop
    rewind = Rewind(segments, plan.slots if plan else 1, begin)
    rewind.forward_steps, kept, after = _unfinished(problem, window, begin, initial, length)
    cotangent: list[Tensor | None] | None = None
    found: list[Losses] = []
    total: Tensor | None = None
    memory_bytes: float = 0
    differentiable = False
    measured = isinstance(memory, Budget) or rewind.forward_steps > 0

    for segment, carried in rewind:
        guard.look(segment, carried, whole, measured)
        tape, saved = meter.tape(segment, carried, key)
        if tape.losses is not None:
            found.append(tape.found(brief=not whole))
            differentiable |= tape.losses.requires_grad
            if whole:
                total = checked_total(found, window.first)
        gradients.note()
        cotangents = 1 if cotangent is None else 2
        after = tape.after if after is None else after
        versions = 0 if whole else guard.versions(problem)
        cotangent = tape.pull(cotangent, factor, divisor)
        if not whole:
            guard.still(problem, versions)
        memory_bytes = max(saved + (rewind.states + between + 1) * one + cotangents * floating, memory_bytes)  # or NaN
        del tape

    if kept is None:
        kept = begin if window.keep == window.start else next(s.kept for s in segments if s.kept is not None)
    checks.some_gradient(differentiable)
    found.reverse()
    total = checked_total(found, window.first) if total is None else total
    if not gradients.finite():
        finite.refuse(problem, window, begin, initial, gradients.leaves, factor)
    return Outcome(
        loss=total,
        valid=sum(losses.valid for losses in found),
        aux=state.join([losses.aux for losses in found], problem.time_dim),
        kept=kept,
        after=after,
        cotangent=cotangent or [],
        forward_steps=rewind.forward_steps + window.stop - window.start,
        memory_bytes=memory_bytes,
    )


def _unfinished(
    problem: Problem, window: Window, begin: Tree, initial: Initial | None, length: int
) -> tuple[int, Tree, Tree]:
    """(steps run, state at `keep`, at `stop`) by a pass without a graph where rows are dead there, else Nones."""
    if not isinstance(problem.time, Sheltered) or not problem.time.unfinished:
        return 0, None, None
    problem = replace(problem, time=problem.time.whole, clip=None)
    kept, after = begin, begin
    with isolated(problem.model, [*state.leaves(begin), *state.leaves(problem.time.inputs_at(window.start))]):
        for a in range(window.start, window.stop, length):
            segment = Segment(problem, window, initial, a, min(a + length, window.stop))
            after = segment.advance(after)
            kept = kept if segment.kept is None else segment.kept
    return window.stop - window.start, kept, after


def checked_total(found: list[Losses], first: int) -> Tensor:
    """The sum of the losses of consecutive segments, the first of them at step `first`, all finite."""
    total = found[0].total() if len(found) == 1 else torch.stack([losses.total() for losses in found]).sum()
    checks.finite(total, (losses.values for losses in found), first)
    return total
