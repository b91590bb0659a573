"""Targets with missing values, as a mask."""

from __future__ import annotations

import torch
from torch import Tensor


def observed(targets: Tensor) -> Tensor:
    """The mask for a series of targets in which NaN stands for what was not measured.

    Arguments:
        targets: (T,), (T, B) or (T, B, features...), any dtype.

    Returns: bool (T,) or (T, B): False where any value of the step is NaN, so that its loss doesn't count. To use the
        features that are there, write a loss that leaves the others out, and count the steps that have any.

    Raises: TypeError for anything but a tensor, ValueError for a tensor without a time axis.

    >>> observed(torch.tensor([[1.0, float("nan")], [2.0, 3.0]]))
    tensor([[ True, False],
            [ True,  True]])
    """
    if not isinstance(targets, Tensor):
        raise TypeError(f"observed(targets) takes a tensor (T, B, ...), not {type(targets).__name__}.")
    if targets.dim() == 0:
        raise ValueError("targets of shape () has no time axis: pass (T,), (T, B) or (T, B, features...).")
    seen = ~torch.isnan(targets)
    return seen.flatten(2).all(2) if seen.dim() > 2 else seen
