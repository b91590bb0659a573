"""y_t = f(W h_{t-1} + U x_t + b), h_t = (1 - α) h_{t-1} + α y_t + s ξ_t"""

import torch
from torch import Tensor
from torch.nn import functional

from bptt.nn.cells.base import ACTIVATIONS, Cell, Given, activated, slope, sloped
from bptt.nn.cells.leak import leak, leaked, to_units


class Rate(Cell):
    """A leaky cell whose state is f's value, low-pass filtered. By unit: α and s. Saved: y."""

    number = 3

    def __init__(self, name: str) -> None:
        self.name, self.activation = name, ACTIVATIONS.index(name)

    def forward(self, gates: Tensor, after: list[Tensor], before: list[Tensor], given: Given) -> None:
        gates.copy_(activated(self.name, gates.addmm_(before[0], given.w.t())))
        leak(before[0], gates, given, after[0])

    def factors(
        self, d: Tensor, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given
    ) -> Tensor | None:
        """Returned: ∂h_t/∂α."""
        slope(self.name, gates, d)
        return None if given.d_by_unit is None else gates - before[0]

    def backward(
        self, d: Tensor, c: list[Tensor], gates: Tensor, more: Tensor | None, given: Given
    ) -> tuple[Tensor, ...]:
        alpha = given.units[0]
        sloped(self.name, d, c[0] * alpha, gates)
        to_units(c[0], more, given)
        return (torch.addmm(c[0] * (1 - alpha), d, given.w),)

    def by_unit(
        self, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given
    ) -> tuple[Tensor, list[Tensor | None]]:
        alpha = given.units[0]
        return slope(self.name, gates, torch.empty_like(gates)).mul_(alpha)[:, None], [1 - alpha]

    def step(self, driven: Tensor, before: list[Tensor], given: Given) -> list[Tensor]:
        y = activated(self.name, driven + functional.linear(before[0], given.w))
        return [leaked(before[0], y, given)]
