"""The keywords that several calls share, checked."""

import math
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def reduction(value: Any) -> str:
    """ "mean" or "sum"."""
    if value not in ("mean", "sum"):
        raise ValueError(f'reduction={value!r}: use "mean" or "sum".')
    return value


def clip(value: Any) -> None:
    """A positive number or None."""
    if value is not None and not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):
        raise ValueError(f"clip_cotangent={value!r} must be a positive number, or None for no clipping.")


def scale(value: Any) -> Any:
    """A finite number above 0, a 0-d tensor, or a function of a tensor."""
    fine = callable(value) if not isinstance(value, Tensor) else value.dim() == 0
    if isinstance(value, Tensor) and value.device.type == "cpu" and fine:  # elsewhere a look would wait for the device
        fine = not value.is_complex() and 0 < value.item() < math.inf
    if not fine and not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):
        raise ValueError(f"scale={value!r} must be a positive number, a 0-d tensor, or a GradScaler's `scale` method.")
    return value


def params(values: Iterable[Tensor] | None) -> list[Tensor] | None:
    """Tensors that require a gradient."""
    if values is None:
        return None
    if isinstance(values, Tensor) or not isinstance(values, Iterable):
        raise TypeError(
            f"params= takes an iterable of tensors such as model.parameters(), not {type(values).__name__}; wrap one "
            f"tensor in a list."
        )
    tensors = list(values)
    if not tensors:
        raise ValueError("params= is empty: leave it out to give a gradient to all leaves.")
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor) or not tensor.requires_grad:
            raise ValueError(f"params=: entry {i} is no tensor that requires a gradient.")
    return tensors


def generator(value: Any) -> torch.Generator | None:
    """A torch.Generator or None."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator={value!r}: pass a torch.Generator, e.g. torch.Generator().manual_seed(0), or None.")
    return value
