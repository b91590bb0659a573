"""What a recurrent layer tells of a call unit by unit, so that what each parameter does to its own unit can be carried.

A layer that is run inside `listening` says what it did as `Units`, once per call; its values are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """What a parameter does in each step to the units that it belongs to.

    parameter: of shape (G H, J) or (G H,), G groups of a row for each unit. factor: (T, B, G, H, d), the derivative of
    a unit's d numbers by what the parameter's row is multiplied into. operand: (T, B, J), by what; None for 1.
    """

    parameter: Tensor
    factor: Tensor
    operand: Tensor | None


class Units(NamedTuple):
    """A call of T steps of a layer of H units with d numbers in their state.

    keep: (T, B, H, d, d), the derivative of a unit's numbers by the same ones a step before.
    parts: by parameter. begin, end: the leaves of the state before and after the call, (1, B, H); none for zeros.
    alone: whether no unit depends on another one, so that this is all.
    """

    keep: Tensor
    parts: list[Part]
    begin: list[Tensor]
    end: list[Tensor]
    alone: bool = False


_heard: ContextVar[list[Callable[[], Units]] | None] = ContextVar("heard", default=None)


@contextmanager
def listening() -> Iterator[list[Callable[[], Units]]]:
    """A block whose calls of layers are told of, in their order."""
    found: list[Callable[[], Units]] = []
    token = _heard.set(found)
    try:
        yield found
    finally:
        _heard.reset(token)


def listened() -> bool:
    """Whether a layer is to say what it does."""
    return _heard.get() is not None


def tell(units: Callable[[], Units]) -> None:
    """Let whoever listens know of a call; `units` is called only if it is of use."""
    found = _heard.get()
    if found is not None:
        found.append(units)


def products(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Of `keep`, after each step the product over the later ones (T, B, H, d, d), and that over all (B, H, d, d)."""
    if keep.shape[-1] == 1:
        whole = keep.flip(0).cumprod(0).flip(0)
        return torch.cat([whole[1:], torch.ones_like(whole[:1])]), whole[0]
    found = [torch.eye(keep.shape[-1], dtype=keep.dtype, device=keep.device).expand(keep.shape[1:])]
    for step in reversed(keep.unbind()):
        found.append(found[-1] @ step)
    *later, whole = found
    return torch.stack(later[::-1]), whole
