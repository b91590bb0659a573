"""Carry across a window's edge what truncation cuts off: RTRL, UORO, SnAp."""

from collections.abc import Iterator
from dataclasses import dataclass

from bptt._errors import check_count
from bptt.strategies.base import Draw, Strategy, Upto
from bptt.strategies.windows import Carry, Window


class _Online(Strategy):
    """Windows of k1 steps, one after the other, across whose edges an influence is carried."""

    k1: int

    def __post_init__(self) -> None:
        check_count(self.k1, f"{self!r}: k1")

    @property
    def reach(self) -> int:
        """The steps whose graph is held, k1."""
        return self.k1

    def _spelled(self, name: str) -> str:
        return name if self.k1 == 1 else f"{name}:{self.k1}"

    def windows(self, upto: Upto, draw: Draw, progress: int | None = None) -> Iterator[Window]:
        """Blocks of k1 losses, each through its own graph."""
        a = progress or 0
        while (b := upto(a + self.k1)) > a:
            yield Window(a, a, b, b, progress=b)
            a = b

    def divisor(self, window: Window) -> float:
        """k1, for a short last block too."""
        return self.k1


@dataclass(frozen=True)
class RTRL(_Online):
    """The exact gradient in windows of k1 steps, by carrying the influence J = ∂s/∂θ forward in time.

        g_w = (the gradient inside window w) + c_a · J_a                                  (1)
        J_b = D_w J_a + I_w,  D_w = ∂s_b/∂s_a,  I_w = ∂s_b/∂θ,  w from a to b             (2)

    k1: steps between updates, >= 1. With frozen parameters every k1 gives the gradient of `FullBPTT`; k1 = 1 is the
    textbook's real-time recurrent learning. With updates in between, J is that of the parameters of their time.

    J covers every parameter that the state depends on, those of an embedding of the inputs too, and leaves out those
    that no state depends on, such as a readout's. At the stream's start and in rows that reset it is the Jacobian of
    the initial state, which is zero unless that is learned.
    One update for each k1 steps and one for the tail; `reduction="mean"` divides by k1. Drops nothing.
    Raises ValueError for k1 < 1; in a run for a plain function without `params=`, for `clip_cotangent`, for inputs
    that ask for a gradient, for rows of a batch that aren't independent, and for parameters that are exchanged;
    BudgetError where `memory=` can't hold J.
    Cost: n vjps of the window for each batch row, n being the numbers in a row's state, and n² P / k1 multiplications a
    step; memory for k1 steps, and for n P numbers a row.

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
        return self._spelled("rtrl")

    @property
    def carries(self) -> Carry:
        """J."""
        return Carry("exact")


@dataclass(frozen=True)
class UORO(_Online):
    """An unbiased and noisy gradient in windows of k1 steps: the influence carried as a product of two vectors.

        g_w = (the gradient inside window w) + (c_a · s̃) θ̃                                (1)
        s̃ ← ρ0 D_w s̃ + ρ1 ν,  θ̃ ← θ̃ / ρ0 + νᵀ I_w / ρ1,  ν of independent random signs     (2)
        ρ0² = (|θ̃| + ε) / (|D_w s̃| + ε),  ρ1² = (|νᵀ I_w| + ε) / (|ν| + ε)                 (3)

    D_w and I_w as in `RTRL`. With frozen parameters the mean over all ν is the gradient of `FullBPTT`. ν has a sign for
    each number of the state of all rows together, drawn from `generator` once a window.
    k1: steps between updates, >= 1; inside of a window nothing is approximated, so longer ones are less noisy.
    epsilon: ε of (3), > 0.

    One update for each k1 steps and one for the tail; `reduction="mean"` divides by k1. Drops nothing on average.
    Raises ValueError for k1 < 1 or epsilon <= 0; in a run as `RTRL` does, but for rows that aren't independent.
    Cost: beside the window's own forward and backward a forward-mode derivative and a vjp of it (where an operator has
    no forward mode, a vjp of a vjp); memory for k1 steps, n B + P numbers.

    >>> import bptt
    >>> bptt.strategies.parse("uoro:5"), bptt.UORO().kind
    (UORO(k1=5, epsilon=1e-07), 'unbiased')

    Source: Tallec & Ollivier 2018, "Unbiased online recurrent optimization", https://arxiv.org/abs/1702.05043; windows
    are its "memory-T UORO".
    """

    k1: int = 1
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, int | float) or not 0 < self.epsilon < 1e300:
            raise ValueError(f"{self!r}: epsilon must be a number above 0.")

    @property
    def kind(self) -> str:
        """Unbiased."""
        return "unbiased"

    @property
    def spec(self) -> str | None:
        """ "uoro" or "uoro:K1"; None with another epsilon."""
        return self._spelled("uoro") if self.epsilon == 1e-7 else None

    @property
    def carries(self) -> Carry:
        """s̃ and θ̃."""
        return Carry("product", epsilon=self.epsilon)


@dataclass(frozen=True)
class SnAp(_Online):
    """The influence carried, of which after every step only what a parameter does within `order` steps is kept.

        g_w = (the gradient inside window w) + c_a · J_a                                  (1)
        J_t = M ∘ (D_t J_{t-1} + I_t),  D_t = ∂s_t/∂s_{t-1},  I_t = ∂s_t/∂θ               (2)
        M = pattern((1 + S)^(order-1) M_1),  M_1 the pattern of I_t, S that of D_t        (3)

    order: n >= 1. A parameter's influence on a unit is kept where it can reach that unit within n steps: SnAp-1 keeps
        what it writes itself. For n as large as the network's longest path it is `RTRL`.
    k1: steps between updates, >= 1; inside of a window nothing is dropped, at its edge what (3) leaves out is. With
        k1 = 1 that is one step more than in the source, where g_t = ∂l_t/∂s_t · J_t of the masked J_t.

    The patterns are found by a few random states and inputs, and grow where a step of the run shows more. For one layer
    of `bptt.nn.RNN`, `GRU`, `LSTM` or `CTRNN` and order 1 all of (2) is done unit by unit, without an n x P matrix.
    One update for each k1 steps and one for the tail; `reduction="mean"` divides by k1. Biased.
    Raises ValueError for order < 1 or k1 < 1; in a run as `RTRL` does.
    Cost: in general that of `RTRL(1)`, whatever k1, since (2) masks after each step; unit by unit about that of
    `TruncatedBPTT(k1)` again, and P numbers a row.

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
        return self._spelled(f"snap:{self.order}")

    @property
    def carries(self) -> Carry:
        """J, masked."""
        return Carry("masked", order=self.order)
