"""A recurrent layer over a whole sequence: what every implementation of the kernels is given."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

RNN, GRU, LSTM = 0, 1, 2
GATES = (1, 3, 4)
"""Gates of RNN, GRU and LSTM: `w_hh` has so many times H rows."""
SAVED = (1, 4, 4)
"""Arrays (H,) a row that `gates` and `d_gates` hold."""
ACTIVATIONS = ("identity", "tanh", "relu")


class Joint(NamedTuple):
    """A second product with the same a, which is then read once: `out` (m, n2) = a b2.

    b2 (k, n2) has its first `split` rows in `first`, the others in `then`; None for zeros. Where `skip`, bool (k,), is
    true, the row counts as zeros, whatever it holds.
    """

    out: Tensor
    first: Tensor | None
    then: Tensor | None
    split: int
    skip: Tensor | None = None


@dataclass
class Sequence:
    """One direction of one layer, the input's part of the gates computed already.

    With N the rows of all steps together and S = SAVED[cell]; float tensors have one dtype and are contiguous.

    cell, activation: RNN, GRU or LSTM; index into ACTIVATIONS, of an RNN. reverse: from the last step to the first.
    steps, rows, units: T, B, H.
    sizes, offsets: int64 (T,): rows of each step, falling, and where they begin among the N; None: B in each.
    start: bool (T, B), rows to start from zeros, or None. weight: (T,) or (T, B), w of equation (1), or None for 1.
    recurrent: (G H, H). bias_n: (H,) or None, what a GRU adds to the recurrent part of n.
    gates: (N, S H), in: the input's part. Out: h of an RNN; r, z, n, W_n h + b_n of a GRU; i, f, g, o of an LSTM.
    cells: (N, H), c of an LSTM. outputs: (N, H), h; for an RNN the same tensor as gates.
    h0, c0: (B, H), or None for zeros. hn, cn: (B, H), the state after the last step.
    d_...: the cotangents; d_gates of an RNN: da; of a GRU: dr, dz, r dn, dn; of an LSTM: di, df, dg, do.
    carry: (B, H), scratch for a GRU and an LSTM.
    """

    cell: int
    activation: int
    reverse: bool
    steps: int
    rows: int
    units: int
    recurrent: Tensor
    gates: Tensor
    outputs: Tensor
    sizes: Tensor | None = None
    offsets: Tensor | None = None
    start: Tensor | None = None
    weight: Tensor | None = None
    bias_n: Tensor | None = None
    cells: Tensor | None = None
    h0: Tensor | None = None
    c0: Tensor | None = None
    hn: Tensor | None = None
    cn: Tensor | None = None
    d_outputs: Tensor | None = None
    d_hn: Tensor | None = None
    d_cn: Tensor | None = None
    d_gates: Tensor | None = None
    carry: Tensor | None = None
    d_h0: Tensor | None = None
    d_c0: Tensor | None = None

    @property
    def threads(self) -> int:
        """Threads worth waking: none where the work of all steps takes less time than to wake them."""
        work = self.steps * self.rows * self.units * self.units * GATES[self.cell]
        return torch.get_num_threads() if work > 2_000_000 else 1
