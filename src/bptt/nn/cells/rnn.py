"""h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)"""

import torch
from torch import Tensor

from bptt.nn.cells.base import ACTIVATIONS, Cell, Given, activated


class RNN(Cell):
    """The cell of torch.nn.RNN, f being the identity too."""

    number = 0
    keeps = False

    def __init__(self, name: str) -> None:
        self.name, self.activation = name, ACTIVATIONS.index(name)
        self.torchs = "" if name == "identity" else f"rnn_{name}"

    def forward(self, gates: Tensor, after: list[Tensor], before: list[Tensor], given: Given) -> None:
        gates.addmm_(before[0], given.w.t())
        if self.name != "identity":
            gates.tanh_() if self.name == "tanh" else gates.relu_()

    def factors(self, d: Tensor, gates: Tensor, states: list[Tensor], before: list[Tensor]) -> None:
        if self.name == "tanh":
            torch.mul(gates, gates, out=d).neg_().add_(1)
        elif self.name == "identity":
            d.fill_(1)

    def backward(
        self, d: Tensor, c: list[Tensor], gates: Tensor, more: Tensor | None, given: Given
    ) -> tuple[Tensor, ...]:
        if self.name == "relu":  # 0, not 0 · inf, where the unit was off
            torch.ops.aten.threshold_backward.grad_input(c[0], gates, 0, grad_input=d)
        else:
            d.mul_(c[0])
        return (torch.mm(d, given.w),)

    def step(self, driven: Tensor, before: list[Tensor], given: Given) -> list[Tensor]:
        return [activated(self.name, driven + torch.nn.functional.linear(before[0], given.w))]
