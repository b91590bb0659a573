"""A recurrent layer over a whole sequence: what every implementation of the kernels is given."""

from dataclasses import dataclass

from torch import Tensor

from bptt.nn.cells import CELLS, Cell

Maybe = Tensor | None


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
    def cell(self) -> Cell:
        return CELLS[self.mode]


@dataclass(slots=True)
class Sequence:
    """One direction of one layer, forward or, with the cotangents, backward.

    With N the rows of all steps together and G, S of its cell; float tensors have one dtype and are contiguous. What is
    (N, ...) may be (T, B, ...).

    x: (N, I), with ids any number of rows. w_ih: (G H, I). w_hh: (G H, H). b_ih, b_hh: (G H,), or both None.
    gates: (N, S H), written forward: what the cell saves. cells: (N, H), its second state, where it has two.
    outputs: (N, H), h; the same tensor as gates where a cell saves nothing else.
    h0, c0: (1, B, H), or None for zeros. hn, cn: (1, B, H), the state after the last step.
    d_outputs, d_hn, d_cn: the cotangents, None for zeros. The other d_...: what is wanted of them, None where nothing.
    d_gates: (N, S H), scratch: the cotangents that the cell's by_input and by_state number.
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

    @property
    def states(self) -> list[Tensor]:
        """Of each state its values after all steps, (N, H)."""
        return [self.outputs] if self.cells is None else [self.outputs, self.cells]

    @property
    def initial(self) -> list[Maybe]:
        """Of each state its values before the first step."""
        return [self.h0, self.c0][: self.plan.cell.states]

    @property
    def last(self) -> list[Maybe]:
        """Of each state where its values after the last step go."""
        return [self.hn, self.cn][: self.plan.cell.states]

    @property
    def d_last(self) -> list[Maybe]:
        """The cotangents of `last`."""
        return [self.d_hn, self.d_cn][: self.plan.cell.states]

    @property
    def d_initial(self) -> list[Maybe]:
        """Where the cotangents of `initial` go."""
        return [self.d_h0, self.d_c0][: self.plan.cell.states]
