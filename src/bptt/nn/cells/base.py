"""What a cell is: the arrays of a step, and one step with its vjp in torch's operators, in place.

A new cell is a subclass in a file of its own and a line in `CELLS`; for the kernels also a header of native/cells/, its
number in native/sequence.h and its name in native/cells/all.h.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ACTIVATIONS = ("identity", "tanh", "relu")
"""In the order of their numbers in native/sequence.h."""


class Given(NamedTuple):
    """What every step of a pass is given. w: (G H, H), the recurrent weights. b: (G H,), their bias, or None."""

    w: Tensor
    b: Tensor | None


class Cell:
    """A cell of H units. Its first state is h, the output; where it has another one, that is called c.

    number: of its kernels, see native/sequence.h. activation: what these call it, 0 where the cell has none.
    gates: G; `w_hh` has so many times H rows.
    saved: S; how many arrays of H numbers `gates` and `d_gates` hold per row.
    states: 1 or 2.
    by_input, by_state: of each gate the array of `d_gates` that is the cotangent of its input's part, and of its
        recurrent part. Where they differ, the recurrent part has a bias of its own, which `forward` adds.
    keeps: whether `gates` holds anything but h; otherwise it is the same tensor as the outputs.
    torchs: the function of torch that runs a sequence of such steps, "" for none: then there is `step`.
    """

    number: int
    activation = 0
    gates, saved, states = 1, 1, 1
    by_input: tuple[int, ...] = (0,)
    by_state: tuple[int, ...] = (0,)
    keeps = True
    torchs = ""

    def forward(self, gates: Tensor, after: list[Tensor], before: list[Tensor], given: Given) -> None:
        """Fill `gates` (n, S H), whose first G H columns hold the input's part, and the states after the step.

        after, before: of each state (n, H).
        """
        raise NotImplementedError

    def factors(self, d: Tensor, gates: Tensor, states: list[Tensor], before: list[Tensor]) -> Tensor | None:
        """Of all N rows at once, what doesn't depend on cotangents: into d (N, S H), and (N, H) where there is more."""
        return None

    def backward(
        self, d: Tensor, c: list[Tensor], gates: Tensor, more: Tensor | None, given: Given
    ) -> tuple[Tensor, ...]:
        """Fill d (n, S H) of one step, which holds the `factors`, from the cotangents c of the states after it.

        gates, more: this step's. Returns the cotangents of the states before it, (n, H).
        """
        raise NotImplementedError

    def step(self, driven: Tensor, before: list[Tensor], given: Given) -> list[Tensor]:
        """The states after a step, differentiable, from the input's part of the gates, biases included."""
        raise NotImplementedError


def activated(name: str, x: Tensor) -> Tensor:
    """One of ACTIVATIONS of x."""
    return x if name == "identity" else getattr(torch, name)(x)
