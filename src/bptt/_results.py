"""What the calls return: one update per window, or an evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bptt import _tree
from bptt._tree import Tree, map_leaves


@dataclass(frozen=True, eq=False)
class Update:
    """What a window gave, besides its gradient in `.grad`; nothing in it holds a graph. It equals itself alone.

    t0, t1: the losses are those of steps t0 .. t1-1 since the stream's start. start: first step of the graph.
    loss: 0-d tensor, the sum over steps of the weighted losses, averaged over all other axes. mean_loss: `loss` divided
        by the number of valid steps, or by the summed weight; 0 if no step is valid.
    steps: t1 - t0. state: pytree, detached, after step t1-1: where to continue from. It is a copy, made when first
        asked for: changing it doesn't change the run.
    cotangent_norm: 0-d tensor, the 2-norm of ∂L/∂(state before `start`), in the units of the gradient without `scale`.
    aux: what the loss returned beside the losses, joined over the steps, or None.
    forward_steps: steps of the recurrence that were run, replays included.
    memory_bytes: the most bytes that saved tensors, stored states and cotangents took at once; NaN if model or loss
        call torch.func's transforms, which hide what is saved.
    decision: what a strategy that decides on lengths decided for this window, or None.
    """

    t0: int
    t1: int
    start: int
    loss: Tensor
    steps: int
    aux: Any
    forward_steps: int
    memory_bytes: float
    decision: Any
    _state: Any = field(repr=False)
    _valid: Any = field(repr=False)
    _norm: Callable[[], Tensor] = field(repr=False)

    @cached_property
    def state(self) -> Any:
        """The state after the last step, the user's own."""
        return map_leaves(torch.Tensor.clone, self._state)

    @property
    def weight(self) -> Any:
        """What `mean_loss` divides `loss` by: a number or a 0-d tensor, to average over several updates or ranks."""
        return self._valid

    @cached_property
    def mean_loss(self) -> Tensor:
        """`loss` per valid step."""
        return mean(self.loss, self._valid)

    @cached_property
    def cotangent_norm(self) -> Tensor:
        """The norm of the cotangent of the state before `start`, computed when first asked for."""
        return self._norm()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` returns: loss, mean_loss, steps, state and aux as in `Update`, over the whole stream."""

    loss: Tensor
    mean_loss: Tensor
    steps: int
    state: Any
    aux: Any


class Sum:
    """A sum of many 0-d tensors that keeps only a few: each block that fills is summed and put into the next one."""

    def __init__(self) -> None:
        self._blocks: list[list[Tensor]] = [[]]

    def add(self, value: Tensor) -> None:
        """One more term."""
        self._blocks[0].append(value)
        level = 0
        while len(self._blocks[level]) == 1024:
            if level + 1 == len(self._blocks):
                self._blocks.append([])
            self._blocks[level + 1].append(torch.stack(self._blocks[level]).sum())
            self._blocks[level] = []
            level += 1

    def total(self) -> Tensor:
        """The sum of the terms so far, of which there is at least one."""
        return torch.stack([value for block in self._blocks for value in block]).sum()


def mean(total: Tensor, valid: Any) -> Tensor:
    """`total` per valid step; 0 if no step is valid."""
    if isinstance(valid, Tensor):
        return torch.where(valid > 0, total / valid, torch.zeros_like(total))
    return total / valid


def norm(values: Sequence[Tensor | None], like: Tree, unit: Any = 1) -> Tensor:
    """The 2-norm over all values together in this unit, 0-d, on the device of `like`; None counts as zero."""
    norms = [torch.linalg.vector_norm(value) for value in values if value is not None]
    if not norms:
        floating = [leaf for leaf in _tree.leaves(like) if _tree.carries_cotangent(leaf)]
        return floating[0].new_zeros(()).real if floating else torch.zeros(())
    total = norms[0]
    for other in norms[1:]:
        total = torch.hypot(
            total, other if other.dtype == total.dtype and other.device == total.device else other.to(total)
        )
    return total if isinstance(unit, int | float) and unit == 1 else total / unit
