"""A call of a recurrent layer described unit by unit, to carry what each parameter does to its own unit.

A layer that is run inside `listening` reports each call as `Units`; its outputs are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from torch import Tensor


class Part(NamedTuple):
    """What a parameter does in each step to the units that it belongs to.

    parameter: of shape (G H, J) or (G H,), G groups of one row for each unit. factor: (T, B, d, G, H), the derivative
    of a unit's d numbers with respect to the product of the parameter's row and the operand. operand: (T, B, J); None
    is 1.
    """

    parameter: Tensor
    factor: Tensor
    operand: Tensor | None


Absorbed = tuple[Tensor, Tensor, Tensor | None]
"""A parameter's entries (B, d, G, H, J), contiguous, with `Part.factor` and `Part.operand`."""


class Passes(Protocol):
    """What goes over the entries E, what each parameter has done to its own unit."""

    def absorb(self, keep: Tensor, parts: list[Absorbed]) -> None:
        """E ← D E + I over all steps of a call, in place. keep: as in `Units`. A unit that keeps nothing forgets E."""
        ...

    def pull(self, c: Tensor, entries: list[Tensor]) -> list[Tensor]:
        """c · E (G, H, J) from c (B, d, H) and each E (B, d, G, H, J); an entry whose cotangent is 0 adds nothing."""
        ...


class Units(NamedTuple):
    """A call of T steps of a layer of H units with d numbers in their state.

    keep: (T, B, d, d, H), the derivative of a unit's numbers with respect to the same numbers one step before.
    parts: one for each parameter. begin, end: the leaves of the state before and after the call, (1, B, H); none for
    zeros. passes: what does the work in this dtype on this device. alone: whether no unit depends on another, so that
    nothing is left out.
    """

    keep: Tensor
    parts: list[Part]
    begin: list[Tensor]
    end: list[Tensor]
    passes: Passes
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
