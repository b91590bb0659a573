"""A recurrent layer over a whole sequence: what every implementation of the kernels is given."""

from dataclasses import dataclass

from torch import Tensor

Maybe = Tensor | None
RNN, GRU, LSTM = 0, 1, 2
CELLS = {
    "RNN_IDENTITY": (RNN, 0), "RNN_TANH": (RNN, 1), "RNN_RELU": (RNN, 2), "GRU": (GRU, 0), "LSTM": (LSTM, 0)
}  # fmt: skip
"""torch.nn's modes: the cell, and the activation of an RNN."""
GATES = (1, 3, 4)
"""Gates of RNN, GRU and LSTM: `w_hh` has so many times H rows."""
SAVED = (1, 4, 4)
"""Arrays (H,) a row that `gates` and `d_gates` hold."""


@dataclass(slots=True)
class Plan:
    """What a call is about, apart from the numbers that autograd follows.

    mode: a key of CELLS. steps, rows: T, B. reverse: from the last step to the first.
    sizes, offsets: int64 (T,): rows of each step, falling, and where they begin among all; None: B in each.
    start: bool (T, B), rows to start from zeros, or None. weight: (T,) or (T, B), w of equation (1), or None for 1.
        Neither with sizes or reverse.
    ids: int64 (N,), the row of x that is each row's input, or None: x has a row for each.
    """

    mode: str
    steps: int
    rows: int
    reverse: bool = False
    sizes: Maybe = None
    offsets: Maybe = None
    start: Maybe = None
    weight: Maybe = None
    ids: Maybe = None

    @property
    def cell(self) -> int:
        return CELLS[self.mode][0]


@dataclass(slots=True)
class Sequence:
    """One direction of one layer, forward or, with the cotangents, backward.

    With N the rows of all steps together and S = SAVED[cell]; float tensors have one dtype and are contiguous. What is
    (N, ...) may be (T, B, ...).

    x: (N, I), with ids any number of rows. w_ih: (G H, I). w_hh: (G H, H). b_ih, b_hh: (G H,), or both None.
    gates: (N, S H), written forward: h of an RNN; r, z, n, W_n h + b_n of a GRU; i, f, g, o of an LSTM.
    outputs: (N, H), h; for an RNN the same tensor as gates. cells: (N, H), c of an LSTM.
    h0, c0: (1, B, H), or None for zeros. hn, cn: (1, B, H), the state after the last step.
    d_outputs, d_hn, d_cn: the cotangents, None for zeros. The other d_...: what is wanted of them, None where nothing.
    d_gates: (N, S H), scratch: da of an RNN; dr, dz, r dn, dn of a GRU; di, df, dg, do of an LSTM.
    """

    plan: Plan
    x: Tensor
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Maybe
    b_hh: Maybe
    h0: Maybe
    c0: Maybe
    gates: Tensor
    outputs: Tensor
    cells: Maybe
    hn: Maybe = None
    cn: Maybe = None
    d_outputs: Maybe = None
    d_hn: Maybe = None
    d_cn: Maybe = None
    d_gates: Maybe = None
    d_x: Maybe = None
    d_w_ih: Maybe = None
    d_w_hh: Maybe = None
    d_b_ih: Maybe = None
    d_b_hh: Maybe = None
    d_h0: Maybe = None
    d_c0: Maybe = None

    @property
    def results(self) -> tuple[Tensor, ...]:
        """Outputs and the last state."""
        assert self.hn is not None
        return (self.outputs, self.hn) if self.cn is None else (self.outputs, self.hn, self.cn)
