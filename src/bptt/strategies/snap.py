"""Carry the influence as far as it reaches within a few steps: SnAp."""

from dataclasses import dataclass

from bptt._errors import check_count
from bptt.strategies.base import Online
from bptt.strategies.windows import Carry


@dataclass(frozen=True)
class SnAp(Online):
    """Carry the influence, but after every step keep only what a parameter does within `order` steps.

        g_w = (the gradient inside window w) + c_a · J_a                                  (1)
        J_t = M ∘ (D_t J_{t-1} + I_t),  D_t = ∂s_t/∂s_{t-1},  I_t = ∂s_t/∂θ               (2)
        M = pattern((1 + S)^(order-1) M_1),  M_1 the pattern of I_t, S that of D_t        (3)

    order: n >= 1. A parameter's influence on a unit is kept if it can reach that unit within n steps: SnAp-1 keeps its
        influence on the units that it writes to. For n as large as the network's longest path it is `RTRL`.
    k1: steps between updates, >= 1. Inside a window nothing is dropped; at its edge, what (3) leaves out is. With
        k1 = 1 that is one step more than in the source, where g_t = ∂l_t/∂s_t · J_t of the masked J_t.

    The patterns are found from a few random states and inputs, and grow if a step of the run shows more. For one layer
    of `bptt.nn.RNN`, `GRU`, `LSTM` or `CTRNN` and order 1, (2) is done unit by unit, without an n x P matrix.
    One update for each k1 steps and one for the tail; `reduction="mean"` divides by k1. Biased.
    Raises ValueError for order < 1 or k1 < 1; in a run as `RTRL` does.
    Cost: in general that of `RTRL(1)`, whatever k1, since (2) masks after each step; unit by unit, with the kernels,
    two to three times that of `TruncatedBPTT(k1)`, and P numbers per row.

    >>> import bptt
    >>> bptt.SnAp(1, k1=25).spec, bptt.strategies.parse("snap:2")
    ('snap:1:25', SnAp(order=2, k1=1))

    Source: Menick et al. 2021, "Practical real time recurrent learning with a sparse approximation",
    https://arxiv.org/abs/2006.07232.
    """

    order: int = 1
    k1: int = 1

    def __post_init__(self) -> None:
        check_count(self.order, f"{self!r}: order")
        super().__post_init__()

    @property
    def spec(self) -> str:
        """ "snap:ORDER" or "snap:ORDER:K1"."""
        return self.spelled(f"snap:{self.order}")

    @property
    def carries(self) -> Carry:
        """J, masked."""
        return Carry("masked", order=self.order)
