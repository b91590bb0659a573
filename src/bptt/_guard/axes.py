"""Time and batch axes that are taken for one another: found by running one step, or one row, alone.

Only for modules with a layer inside that knows which of its axes is time, since only these can be turned by mistake.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bptt import _snapshot, _torch, _tree
from bptt._errors import named
from bptt._recurrence import lent
from bptt._tree import Tree, shape


def told_apart(model: Any, inputs: Tree, carried: Tree, time_dim: int) -> None:
    """Raise ValueError if the module takes the steps for rows and the rows for steps, as one step or row alone shows.

    Cost: two to five calls of one or two steps, for modules that hold a layer with the other order of axes.
    """
    model = _torch.unwrapped(model)
    xs = _tree.leaves(inputs)
    if not _holds_another_order(model, time_dim) or any(x.dim() < 2 for x in xs):
        return
    tensors = [*xs, *_tree.leaves(carried)]
    with _snapshot.isolated(model, tensors), torch.no_grad():
        turned = _turned(_twin(model), inputs, _tree.detach(carried), time_dim)
    if turned:
        here, there = ("time_dim=1", "(B, T, ...)") if time_dim == 0 else ("time_dim=0", "(T, B, ...)")
        raise ValueError(
            f"{named(model)} reads inputs {shape(xs[0])} as {there}, with time at axis {1 - time_dim}, so the rows of "
            f"a batch would be taken for steps: pass {here}, with inputs and targets {there}."
        )


def _holds_another_order(model: Any, time_dim: int) -> bool:
    """Whether a layer inside has its batch first (time_dim=0), or there are layers and none has it so (time_dim=1)."""
    if not isinstance(model, nn.Module):
        return False
    said = {layer.batch_first for layer in model.modules() if isinstance(getattr(layer, "batch_first", None), bool)}
    return True in said if time_dim == 0 else said == {False}


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the module, whose buffers and attributes calls may change; the module itself if it can't be copied."""
    try:
        return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except Exception:  # an attribute may raise anything
        return model


def _turned(model: Any, inputs: Tree, carried: Tree, time_dim: int) -> bool:
    """Whether the axis taken for time has no memory, and the axis taken for rows has one."""

    def first(tree: Tree, dim: int, length: int, start: int = 0) -> Tree:
        return _tree.narrow(tree, dim, start, length)

    def outputs(part: Tree) -> list[Tensor] | None:
        try:
            return _tree.leaves(model(lent(part), lent(carried))[0])
        except Exception:  # a failure of one alone is informative; a failure with all is reported where that is run
            return None

    rows_dim = 1 - time_dim
    steps, rows = (min(leaf.shape[dim] for leaf in _tree.leaves(inputs)) for dim in (time_dim, rows_dim))
    if outputs(first(inputs, time_dim, 1)) is None:
        return outputs(first(inputs, rows_dim, 1)) is not None and outputs(inputs) is not None

    def remembers(dim: int) -> bool | None:
        """Whether the second entry along `dim` comes out differently after the first than alone; None if it fails."""
        both, alone = outputs(first(inputs, dim, 2)), outputs(first(inputs, dim, 1, start=1))
        if both is None or alone is None or any(leaf.dim() <= dim or leaf.shape[dim] != 2 for leaf in both):
            return None
        pairs = [(leaf.narrow(dim, 1, 1), other) for leaf, other in zip(both, alone, strict=True)]
        return not all(a.shape == b.shape and torch.allclose(a, b, 1e-4, 1e-6, equal_nan=True) for a, b in pairs)

    if rows < 2 or (steps > 1 and remembers(time_dim) is not False):
        return False
    return remembers(rows_dim) is True
