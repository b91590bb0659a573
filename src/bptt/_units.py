"""A call of a recurrent layer described unit by unit, to carry what each parameter does to its own unit.

A layer that is run inside `listening` reports each call as `Units`; its outputs are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """What a parameter does in each step to the units that it belongs to.

    parameter: of shape (G H, J) or (G H,), G groups of one row for each unit. factor: (T, B, G, H, d), the derivative
    of a unit's d numbers with respect to the product of the parameter's row and the operand. operand: (T, B, J); None
    is 1.
    """

    parameter: Tensor
    factor: Tensor
    operand: Tensor | None


class Units(NamedTuple):
    """A call of T steps of a layer of H units with d numbers in their state.

    keep: (T, B, H, d, d), the derivative of a unit's numbers with respect to the same numbers one step before.
    parts: one for each parameter. begin, end: the leaves of the state before and after the call, (1, B, H); none for
    zeros. alone: whether no unit depends on another, so that nothing is left out.
    """

    keep: Tensor
    parts: list[Part]
    begin: list[Tensor]
    end: list[Tensor]
    alone: bool = False


_heard: ContextVar[list[Callable[[], Units]] | None] = ContextVar("heard", default=None)


@contextmanager
def listening() -> Iterator[list[Callable[[], Units]]]:
    """A block in which calls of layers are reported, in their order."""
    found: list[Callable[[], Units]] = []
    token = _heard.set(found)
    try:
        yield found
    finally:
        _heard.reset(token)


def listened() -> bool:
    """Whether layers are to report their calls."""
    return _heard.get() is not None


def tell(units: Callable[[], Units]) -> None:
    """Report a call to whoever listens; `units` is called only then."""
    found = _heard.get()
    if found is not None:
        found.append(units)


def products(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The product of `keep` over the steps after each step (T, B, H, d, d), and over all steps (B, H, d, d)."""
    if keep.shape[-1] == 1:
        whole = keep.flip(0).cumprod(0).flip(0)
        return torch.cat([whole[1:], torch.ones_like(whole[:1])]), whole[0]
    found = [torch.eye(keep.shape[-1], dtype=keep.dtype, device=keep.device).expand(keep.shape[1:])]
    for step in reversed(keep.unbind()):
        found.append(found[-1] @ step)
    *later, whole = found
    return torch.stack(later[::-1]), whole
