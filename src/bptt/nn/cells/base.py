"""What a cell is: the arrays of a step, and one step with its vjp in torch's operators, in place.

A new cell is a subclass in a file of its own and a line in `CELLS`; for the kernels also a header of native/cells/, its
number in native/sequence.h and its name in native/cells/all.h.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = ("identity", "tanh", "relu", "sigmoid", "softplus")
"""In the order of their numbers in native/sequence.h."""


class Given(NamedTuple):
    """What a step is given beside its gates and states.

    w: (G H, H), the recurrent weights. b: (G H,), their bias, or None.
    by_unit: (P, H), for a cell that has them. noise: (n, H), the step's normal numbers, None for none.
    d_by_unit: (B, P, H), to which the step's part of its cotangent is added, or None.
    """

    w: Tensor
    b: Tensor | None
    by_unit: Tensor | None = None
    noise: Tensor | None = None
    d_by_unit: Tensor | None = None

    @property
    def units(self) -> tuple[Tensor, ...]:
        """The parameters by unit, each (H,)."""
        assert self.by_unit is not None
        return self.by_unit.unbind()


class Cell:
    """A cell of H units. Its first state is h, the output; a second state, if any, is called c.

    number: of its kernels, see native/sequence.h. activation: its number there, 0 if the cell has none.
    gates: G; `w_hh` has G H rows.
    saved: S; how many arrays of H numbers `gates` and `d_gates` hold per row.
    states: 1 or 2. operand: the one that the recurrent weights multiply.
    by_input, by_state: for each gate, the array of `d_gates` that is the cotangent of its input's part, and of its
        recurrent part. If they differ, the recurrent part has a bias of its own, which `forward` adds.
    keeps: whether `gates` holds anything but h; otherwise it is the same tensor as the outputs.
    torchs: torch's function that runs a sequence of such steps, "" for none: then there is `step`.
    """

    number: int
    activation = 0
    gates, saved, states, operand = 1, 1, 1, 0
    by_input: tuple[int, ...] = (0,)
    by_state: tuple[int, ...] = (0,)
    keeps = True
    torchs = ""

    def forward(self, gates: Tensor, after: list[Tensor], before: list[Tensor], given: Given) -> None:
        """Fill `gates` (n, S H), whose first G H columns hold the input's part, and the states after the step.

        after, before: (n, H) for each state.
        """
        raise NotImplementedError

    def factors(
        self, d: Tensor, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given
    ) -> Tensor | None:
        """For all N rows at once, what doesn't depend on cotangents: into d (N, S H), and (N, H) if there is more."""
        raise NotImplementedError

    def backward(
        self, d: Tensor, c: list[Tensor], gates: Tensor, more: Tensor | None, given: Given
    ) -> tuple[Tensor, ...]:
        """Fill d (n, S H) of one step, which holds the `factors`, from the cotangents c of the states after it.

        gates, more: this step's. Returns the cotangents of the states before it, (n, H).
        """
        raise NotImplementedError

    def by_unit(
        self, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The derivatives at a step of the d numbers of a unit's state, for all N rows at once.

        The first (N, d, S H) is with respect to the arrays of `d_gates`; the second (N, d, H) with respect to each of
        the numbers one step before, except through the gates; for the first of them None is zero. A state that is a
        function of another one isn't counted.
        """
        raise NotImplementedError

    def operand_slope(self, before: list[Tensor]) -> Tensor | None:
        """The derivative (N, H) of what the recurrent weights multiply with respect to the first state; None is 1."""
        return None

    def step(self, driven: Tensor, before: list[Tensor], given: Given) -> list[Tensor]:
        """The states after a step, differentiable, from the input's part of the gates, including biases."""
        raise NotImplementedError


def activated(name: str, x: Tensor) -> Tensor:
    """One of ACTIVATIONS of x."""
    return x if name == "identity" else functional.softplus(x) if name == "softplus" else getattr(torch, name)(x)


def slope(name: str, y: Tensor, out: Tensor) -> Tensor:
    """The derivative of one of ACTIVATIONS as a function of its value y, into `out`."""
    if name == "tanh":
        return torch.mul(y, y, out=out).neg_().add_(1)
    if name == "sigmoid":
        return torch.mul(y, 1 - y, out=out)
    if name == "softplus":
        return torch.expm1(-y, out=out).neg_()
    return out.fill_(1) if name == "identity" else out.copy_(y > 0)


def sloped(name: str, d: Tensor, c: Tensor, y: Tensor) -> Tensor:
    """Multiply d, which holds the slope at y, by c; where a relu is off the result is 0, not 0 · inf."""
    if name == "relu":
        return torch.ops.aten.threshold_backward.grad_input(c, y, 0, grad_input=d)
    return d.mul_(c)
