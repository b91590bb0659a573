"""a_t = W f(h_{t-1}) + U x_t + b, h_t = (1 - α) h_{t-1} + α a_t + s ξ_t"""

import torch
from torch import Tensor
from torch.nn import functional

from bptt.nn.cells.base import ACTIVATIONS, Cell, Given, activated, slope
from bptt.nn.cells.leak import leak, leaked, to_units


class Voltage(Cell):
    """A leaky cell whose state is what f acts on. By unit: α and s. Saved: a.

    The second state is f(h), a function of the first; it is what the recurrent weights multiply.
    """

    number = 4
    states, operand = 2, 1

    def __init__(self, name: str) -> None:
        self.name, self.activation = name, ACTIVATIONS.index(name)

    def forward(self, gates: Tensor, after: list[Tensor], before: list[Tensor], given: Given) -> None:
        leak(before[0], gates.addmm_(before[1], given.w.t()), given, after[0])
        after[1].copy_(activated(self.name, after[0]))

    def factors(
        self, d: Tensor, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given
    ) -> Tensor | None:
        """Returned: ∂h_t/∂α."""
        slope(self.name, states[1], d)
        return None if given.d_by_unit is None else gates - before[0]

    def backward(
        self, d: Tensor, c: list[Tensor], gates: Tensor, more: Tensor | None, given: Given
    ) -> tuple[Tensor, ...]:
        alpha = given.units[0]
        dh = c[0] + (
            torch.where(d > 0, c[1], 0) if self.name == "relu" else d * c[1]
        )  # 0, not 0 · inf, where it is off
        torch.mul(dh, alpha, out=d)
        to_units(dh, more, given)
        return dh * (1 - alpha), torch.mm(d, given.w)

    def by_unit(
        self, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given
    ) -> tuple[Tensor, list[Tensor | None]]:
        alpha = given.units[0]
        return alpha.expand_as(gates)[:, None], [1 - alpha]

    def operand_slope(self, before: list[Tensor]) -> Tensor | None:
        return slope(self.name, before[1], torch.empty_like(before[1]))

    def step(self, driven: Tensor, before: list[Tensor], given: Given) -> list[Tensor]:
        h = leaked(before[0], driven + functional.linear(before[1], given.w), given)
        return [h, activated(self.name, h)]
