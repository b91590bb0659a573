"""r, z = σ(...), n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn)), h_t = (1 - z) n + z h_{t-1}"""

import torch
from torch import Tensor

from bptt.nn.cells.base import Cell, Given


class GRU(Cell):
    """The cell of torch.nn.GRU. Saved: r, z, n, W_hn h + b_hn. Cotangents: dr, dz, r dn, dn."""

    number = 1
    gates, saved = 3, 4
    by_input, by_state = (0, 1, 3), (0, 1, 2)
    torchs = "gru"

    def forward(self, gates: Tensor, after: list[Tensor], before: list[Tensor], given: Given) -> None:
        H = gates.shape[1] // 4
        product = torch.mm(before[0], given.w.t())
        rz, fresh, inner = gates.split((2 * H, H, H), 1)
        r, z = rz.add_(product[:, : 2 * H]).sigmoid_().split(H, 1)
        torch.add(product[:, 2 * H :], 0 if given.b is None else given.b[2 * H :], out=inner)
        fresh.addcmul_(r, inner).tanh_()
        torch.addcmul(fresh, z, before[0] - fresh, out=after[0])  # lerp makes NaN of an infinite state

    def factors(self, d: Tensor, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given) -> None:
        H = gates.shape[1] // 4
        r, z, fresh, inner = gates.split(H, 1)
        of_r, of_z, recurrent, of_n = d.split(H, 1)
        torch.mul(1 - z, 1 - fresh * fresh, out=of_n)
        torch.mul(of_n, r, out=recurrent)
        torch.mul(of_n * inner, r * (1 - r), out=of_r)
        torch.mul(before[0] - fresh, z * (1 - z), out=of_z)

    def backward(
        self, d: Tensor, c: list[Tensor], gates: Tensor, more: Tensor | None, given: Given
    ) -> tuple[Tensor, ...]:
        H = gates.shape[1] // 4
        d.view(-1, 4, H).mul_(c[0][:, None])
        return (torch.addmm(c[0] * gates[:, H : 2 * H], d[:, : 3 * H], given.w),)

    def by_unit(
        self, gates: Tensor, states: list[Tensor], before: list[Tensor], given: Given
    ) -> tuple[Tensor, list[Tensor | None]]:
        d, H = torch.empty_like(gates), gates.shape[1] // 4
        self.factors(d, gates, states, before, given)
        return d[:, None], [gates[:, None, H : 2 * H]]
