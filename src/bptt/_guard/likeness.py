"""Whether two results of the same evaluation agree, up to rounding."""

from typing import Any

import torch
from torch import Tensor, nn

from bptt import _tree
from bptt._tree import Tree

CLOSE = 1e-5
"""The relative difference from which on two evaluations count as different; more in low precision."""


def alike(one: Tree, other: Tree, close: float | None = None) -> bool:
    """Whether all leaves agree, floating ones up to rounding; NaN equals NaN."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(alike(a, b, close) for a, b in zip(one, other, strict=True))
    pairs = list(zip(_tree.leaves(one), _tree.leaves(other), strict=False))
    if len(_tree.leaves(one)) != len(_tree.leaves(other)):
        return False
    for a, b in pairs:
        if a.shape != b.shape:
            return False
        equal = (a == b) | ((a != a) & (b != b))
        if bool(equal.all()):
            continue
        if not _tree.carries_cotangent(a):
            return False
        unit = CLOSE if a.device.type == "cpu" else max(CLOSE, 4 * torch.finfo(a.dtype).eps)
        if not distance(a, b) <= (unit if close is None else close) * _scale(a, b):
            return False
    return True


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite if only one of two entries is finite."""
    a, b = one.detach(), other.detach()
    equal = (a == b) | ((a != a) & (b != b))
    difference = torch.where(equal, torch.zeros_like(a), a - b).abs()
    return float(difference.nan_to_num(nan=torch.inf).max()) if difference.numel() else 0.0


def _scale(*tensors: Tensor) -> float:
    largest = [t.detach().abs().nan_to_num(nan=0.0, posinf=0.0).max() for t in tensors if t.numel()]
    return max((float(value) for value in largest), default=0.0)


def rounding(tensors: list[Tensor], loss: Any) -> float:
    """The rounding error of the coarsest precision involved."""
    if isinstance(loss, nn.Module):
        tensors = [*tensors, *loss.parameters(), *loss.buffers()]
    found = {t.dtype for t in tensors if _tree.carries_cotangent(t)}
    found |= {torch.get_autocast_dtype(d) for d in {t.device.type for t in tensors} if torch.is_autocast_enabled(d)}
    return max((torch.finfo(dtype).eps for dtype in found), default=0.0)


def nudged(leaf: Tensor, by: float) -> Tensor:
    """Every other entry a little larger, the rest smaller by as much."""
    if not leaf.is_floating_point():
        return leaf
    signs = torch.ones(leaf.numel(), dtype=leaf.dtype, device=leaf.device)
    signs[1::2] = -1
    return leaf * (1 + by * signs.reshape(leaf.shape))
