"""Leaky units with noise: each unit has α, the share of a step that is new, and s, the size of the noise."""

import torch
from torch import Tensor

from bptt.nn.cells.base import Given


def leak(old: Tensor, new: Tensor, given: Given, out: Tensor) -> Tensor:
    """(1 - α) old + α new + s ξ into `out`."""
    alpha, s = given.units
    torch.mul(old, 1 - alpha, out=out).addcmul_(new, alpha)
    return out if given.noise is None else out.addcmul_(given.noise, s)


def leaked(old: Tensor, new: Tensor, given: Given) -> Tensor:
    """The same, differentiable."""
    alpha, s = given.units
    h = (1 - alpha) * old + alpha * new
    return h if given.noise is None else h + s * given.noise


def to_units(c: Tensor, by_alpha: Tensor | None, given: Given) -> None:
    """Add a step's part of the cotangents of α and s, from c, that of h, and ∂h/∂α."""
    if given.d_by_unit is not None and by_alpha is not None:
        given.d_by_unit[: len(c), 0].addcmul_(c, by_alpha)
        if given.noise is not None:
            given.d_by_unit[: len(c), 1].addcmul_(c, given.noise)
