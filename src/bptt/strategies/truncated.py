"""Truncated back-propagation through time."""

from collections.abc import Iterator
from dataclasses import dataclass

from bptt._errors import check_count
from bptt.strategies.base import Draw, Strategy, Upto
from bptt.strategies.windows import Window


@dataclass(frozen=True)
class TruncatedBPTT(Strategy):
    """Every k1 steps, the losses of the last k1 through a graph of at most k2 steps.

        c_t = ∂l_t/∂s_t + w_t · c_{t+1} · ∂s_{t+1}/∂s_t,  w = 0 at the window's start     (1)
        losses [a, a + k1) through the graph of [max(0, a - (k2 - k1)), a + k1),  a = 0, k1, 2 k1, ...

    k1: steps between updates, >= 1. k2: steps a graph holds, >= k1; None means k1.
    k1 = k2 cuts fixed subsequences; k1 = 1 keeps k2 terms of each sum; k2 >= T + k1 - 1 is the full gradient. For
    k1 < k2 a window starts again from the state that the window before it computed, so that the optimiser may step
    in between; states are those of the parameters of their time. A short last block reaches back equally far. A model
    that draws random numbers draws new ones each time a step runs: k2 >= T + k1 - 1 is then the full gradient in
    expectation only.

    One update for each k1 steps and one for the tail; `reduction="mean"` divides by k1.
    Raises ValueError for k1 < 1 or k2 < k1. Biased: what a loss owes to steps before its window is dropped.
    Cost: k2 / k1 forwards and backwards of each step; memory for k2 steps.

    >>> import bptt
    >>> [w.start for w in bptt.TruncatedBPTT(k1=2, k2=5).windows(lambda t: min(t, 7), draw=lambda: 0.0)]
    [0, 0, 1, 3]

    Source: Williams & Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", Neural Computation 2(4), BPTT(h; h') with h = k2 and h' = k1.
    """

    k1: int
    k2: int | None = None

    def __post_init__(self) -> None:
        check_count(self.k1, f"{self!r}: k1")
        if self.k2 is None:
            return
        check_count(self.k2, f"{self!r}: k2")
        if self.k2 < self.k1:
            raise ValueError(
                f"{self!r}: k2 must be at least k1, or some losses get no gradient. Use k2={self.k1} or more."
            )

    @property
    def reach(self) -> int:
        """k2."""
        return self.k1 if self.k2 is None else self.k2

    @property
    def spec(self) -> str:
        """ "tbptt:K1" or "tbptt:K1:K2"."""
        return f"tbptt:{self.k1}" + (f":{self.k2}" if self.k2 not in (None, self.k1) else "")

    def windows(self, upto: Upto, draw: Draw, progress: int | None = None) -> Iterator[Window]:
        """The blocks of k1 losses, each with its reach back."""
        reach = 0 if self.k2 is None else self.k2 - self.k1
        a = progress or 0
        while (b := upto(a + self.k1)) > a:
            yield Window(start=max(0, a - reach), first=a, stop=b, keep=max(0, b - reach), progress=b)
            a = b

    def divisor(self, window: Window) -> float:
        """k1, for a short last block too."""
        return self.k1
