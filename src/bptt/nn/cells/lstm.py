"""i, f, o = σ(...), g = tanh(...), c_t = f c_{t-1} + i g, h_t = o tanh(c_t)"""

import torch
from torch import Tensor

from bptt.nn.cells.base import Cell, Given


class LSTM(Cell):
    """The cell of torch.nn.LSTM. Saved: i, f, g, o. Cotangents: theirs."""

    number = 2
    gates, saved, states = 4, 4, 2
    by_input = by_state = (0, 1, 2, 3)
    torchs = "lstm"

    def forward(self, gates: Tensor, after: list[Tensor], before: list[Tensor], given: Given) -> None:
        H = gates.shape[1] // 4
        gates.addmm_(before[0], given.w.t())
        squashed, fresh, o = gates.split((2 * H, H, H), 1)
        i, f = squashed.sigmoid_().split(H, 1)
        torch.mul(f, before[1], out=after[1]).addcmul_(i, fresh.tanh_())
        torch.mul(o.sigmoid_(), after[1].tanh(), out=after[0])

    def factors(self, d: Tensor, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given) -> Tensor:
        """Returned: ∂h/∂c."""
        H = gates.shape[1] // 4
        i, f, g, o = gates.split(H, 1)
        of_i, of_f, of_g, of_o = d.split(H, 1)
        squashed = states[1].tanh()
        torch.mul(g, i * (1 - i), out=of_i)
        torch.mul(before[1], f * (1 - f), out=of_f)
        torch.mul(i, 1 - g * g, out=of_g)
        torch.mul(squashed, o * (1 - o), out=of_o)
        return o * (1 - squashed * squashed)

    def backward(
        self, d: Tensor, c: list[Tensor], gates: Tensor, more: Tensor | None, given: Given
    ) -> tuple[Tensor, ...]:
        assert more is not None
        H = gates.shape[1] // 4
        of_c = torch.addcmul(c[1], c[0], more)
        d[:, : 3 * H].view(-1, 3, H).mul_(of_c[:, None])
        d[:, 3 * H :].mul_(c[0])
        return torch.mm(d, given.w), of_c * gates[:, H : 2 * H]

    def by_unit(
        self, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given
    ) -> tuple[Tensor, list[Tensor | None]]:
        d, H = gates.new_empty(len(gates), 2, gates.shape[1]), gates.shape[1] // 4
        of_h, of_c = d.unbind(1)
        more, forget = self.factors(of_c, gates, states, before, given), gates[:, H : 2 * H]
        torch.mul(of_c[:, : 3 * H].unflatten(1, (3, H)), more[:, None], out=of_h[:, : 3 * H].unflatten(1, (3, H)))
        of_h[:, 3 * H :] = of_c[:, 3 * H :]
        of_c[:, 3 * H :] = 0
        return d, [None, torch.stack([more * forget, forget], 1)]
