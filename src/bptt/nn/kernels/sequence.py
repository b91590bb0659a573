"""A recurrent layer over a whole sequence: what every implementation of the kernels is given."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from bptt.nn.cells import CELLS, Cell

Maybe = Tensor | None


@dataclass(slots=True)
class Plan:
    """What describes a call, apart from the numbers that autograd follows.

    mode: a key of CELLS. steps, rows: T, B. reverse: whether it goes from the last step to the first.
    sizes, offsets: int64 (T,): the rows of each step, decreasing, and where they begin among all; None: B in each.
    start: bool (T, B), rows that start anew, or None. weight: (T,) or (T, B), w of equation (1), or None for 1.
        Neither goes with sizes or reverse.
    ids: int64 (N,), the row of x that is each row's input, or None: x has one row for each.
    noise: the key and the number of the first step, for the numbers that the cell draws; None: it draws none.
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
    noise: tuple[int, int] | None = None

    @property
    def cell(self) -> Cell:
        return CELLS[self.mode]


class Tensors(NamedTuple):
    """What a layer and direction is evaluated on.

    x: (N, I), or any number of rows with ids. Anything (N, ...) may also be (T, B, ...).
    h0, c0: (1, B, H), the states before the first step, None for zeros.
    w_ih: (G H, I). w_hh: (G H, H). b_ih, b_hh: (G H,), or None; b_hh may be None alone.
    start_h, start_c: (H,), the states of rows that start anew, None for zeros; only together with h0 and c0.
    by_unit: (P, H), the parameters by unit of a cell that has them.
    """

    x: Tensor
    h0: Maybe
    c0: Maybe
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Maybe
    b_hh: Maybe
    start_h: Maybe = None
    start_c: Maybe = None
    by_unit: Maybe = None


class Wanted(NamedTuple):
    """For each of `Tensors` the tensor that its cotangent goes into, or None.

    start_h, start_c: (B, H) and by_unit: (B, P, H) are zeros before, and sums over each row's steps afterwards.
    """

    x: Maybe = None
    h0: Maybe = None
    c0: Maybe = None
    w_ih: Maybe = None
    w_hh: Maybe = None
    b_ih: Maybe = None
    b_hh: Maybe = None
    start_h: Maybe = None
    start_c: Maybe = None
    by_unit: Maybe = None


NOTHING = Wanted()


@dataclass(slots=True)
class Sequence:
    """One direction of one layer, forward or, with the cotangents, backward.

    N is the number of rows of all steps together, G and S are those of the cell; all float tensors have one dtype and
    are contiguous.

    gates: (N, S H), written forward: what the cell saves. cells: (N, H), its second state, if it has two.
    outputs: (N, H), h; the same tensor as gates if the cell saves nothing else.
    hn, cn: (1, B, H), the states after the last step.
    d_outputs, d_hn, d_cn: the cotangents, None for zeros.
    d_gates: (N, S H), scratch: the cotangents that the cell's by_input and by_state number.
    wanted: the cotangents of `given`.
    """

    plan: Plan
    given: Tensors
    gates: Tensor
    outputs: Tensor
    cells: Maybe
    hn: Maybe = None
    cn: Maybe = None
    d_outputs: Maybe = None
    d_hn: Maybe = None
    d_cn: Maybe = None
    d_gates: Maybe = None
    wanted: Wanted = NOTHING

    @property
    def results(self) -> tuple[Tensor, ...]:
        """Outputs and the last state."""
        assert self.hn is not None
        return (self.outputs, self.hn) if self.cn is None else (self.outputs, self.hn, self.cn)

    @property
    def units(self) -> int:
        """H."""
        return self.given.w_hh.shape[1]

    @property
    def states(self) -> list[Tensor]:
        """The values of each state after every step, (N, H)."""
        return [self.outputs] if self.cells is None else [self.outputs, self.cells]
