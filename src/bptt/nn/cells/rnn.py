"""h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)"""

import torch
from torch import Tensor
from torch.nn import functional

from bptt.nn.cells.base import ACTIVATIONS, Cell, Given, activated, slope, sloped


class RNN(Cell):
    """The cell of torch.nn.RNN, where f may also be the identity."""

    number = 0
    keeps = False

    def __init__(self, name: str) -> None:
        self.name, self.activation = name, ACTIVATIONS.index(name)
        self.torchs = "" if name == "identity" else f"rnn_{name}"

    def forward(self, gates: Tensor, after: list[Tensor], before: list[Tensor], given: Given) -> None:
        gates.addmm_(before[0], given.w.t())
        if self.name != "identity":
            gates.tanh_() if self.name == "tanh" else gates.relu_()

    def factors(self, d: Tensor, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given) -> None:
        slope(self.name, gates, d)

    def backward(
        self, d: Tensor, c: list[Tensor], gates: Tensor, more: Tensor | None, given: Given
    ) -> tuple[Tensor, ...]:
        sloped(self.name, d, c[0], gates)
        return (torch.mm(d, given.w),)

    def by_unit(
        self, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given
    ) -> tuple[Tensor, list[Tensor | None]]:
        return slope(self.name, gates, torch.empty_like(gates))[:, None], [None]

    def step(self, driven: Tensor, before: list[Tensor], given: Given) -> list[Tensor]:
        return [activated(self.name, driven + functional.linear(before[0], given.w))]
