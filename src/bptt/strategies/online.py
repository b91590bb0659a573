"""Carry across a window's edge what truncation cuts off, exactly: RTRL."""

from dataclasses import dataclass

from bptt.strategies.base import Online
from bptt.strategies.windows import Carry


@dataclass(frozen=True)
class RTRL(Online):
    """The exact gradient in windows of k1 steps, by carrying the influence J = ∂s/∂θ forward in time.

        g_w = (the gradient inside window w) + c_a · J_a                                  (1)
        J_b = D_w J_a + I_w,  D_w = ∂s_b/∂s_a,  I_w = ∂s_b/∂θ,  w from a to b             (2)

    k1: steps between updates, >= 1. With frozen parameters every k1 gives the gradient of `FullBPTT`; k1 = 1 is the
    textbook's real-time recurrent learning. With updates in between, J comes from the parameters of each step's time.

    J covers every parameter that the state depends on, including those of an embedding of the inputs, and leaves out
    those that no state depends on, such as a readout's. At the stream's start and in rows that reset it is the Jacobian
    of the initial state, which is zero unless that state is learned.
    One update for each k1 steps and one for the tail; `reduction="mean"` divides by k1. Nothing is dropped.
    Raises ValueError for k1 < 1; in a run for a plain function without `params=`, for `clip_cotangent`, for inputs
    that require a gradient, for batch rows that aren't independent, for parameters that are replaced, and on a CPU for
    a J that the machine's memory can't hold; BudgetError if `memory=` can't.
    Cost: n vjps of the window for each batch row, where n is how many numbers a row's state has, and n² P / k1
    multiplications per step; memory for k1 steps, and for n P numbers per row.

    >>> import bptt, torch
    >>> model, loss = torch.nn.RNN(3, 4), bptt.per_step(torch.nn.MSELoss())
    >>> chunk = torch.randn(9, 2, 3), torch.randn(9, 2, 4)
    >>> found = bptt.compare(model, loss, chunk, strategies=[bptt.TruncatedBPTT(2), bptt.RTRL(2)])
    >>> [entry.bias.value < 1e-5 for entry in found.entries]
    [False, True]

    Source: Williams & Zipser 1989, "A learning algorithm for continually running fully recurrent neural networks",
    Neural Computation 1(2); by windows: Schmidhuber 1992, "A fixed size storage O(n³) time complexity learning
    algorithm for fully recurrent continually running networks", Neural Computation 4(2).
    """

    k1: int = 1

    @property
    def kind(self) -> str:
        """Exact."""
        return "exact"

    @property
    def spec(self) -> str:
        """ "rtrl" or "rtrl:K1"."""
        return self.spelled("rtrl")

    @property
    def carries(self) -> Carry:
        """J."""
        return Carry("exact")
