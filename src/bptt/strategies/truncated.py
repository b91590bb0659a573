"""Truncated back-propagation through time."""

from collections.abc import Iterator
from dataclasses import dataclass

from bptt._errors import check_count
from bptt.strategies.base import Draw, Strategy, Upto
from bptt.strategies.windows import Window


@dataclass(frozen=True)
class TruncatedBPTT(Strategy):
    """Every k1 steps, differentiate the losses of the last k1 steps through a graph of at most k2 steps.

        c_t = ∂l_t/∂s_t + w_{t+1} · c_{t+1} · ∂s_{t+1}/∂s_t,  w = 0 at the window's start (1)
        losses [a, a + k1) through the graph of [s, a + k1),  s = max(0, a - (k2 - k1)),  a = 0, k1, 2 k1, ...
        the state before s from that before max(0, s - burn_in), without a graph

    k1: steps between updates, >= 1. k2: steps that a graph holds, >= k1; None means k1.
    k1 = k2 cuts fixed subsequences; k1 = 1 keeps k2 terms of each sum; k2 >= T + k1 - 1 is the full gradient. For
    k1 < k2 a window starts again from the state that the window before it computed, with the parameters it had at the
    time, so that the optimiser may step in between. A short last block reaches back equally far. A model that draws
    random numbers draws new ones each time a step runs: k2 >= T + k1 - 1 is then the full gradient in expectation only.
    burn_in: steps before s whose states are computed anew, with the current parameters and without a graph, from the
        state before them: for states that have become stale, such as those of a replay buffer or a long run.

    One update for each k1 steps and one for the tail; `reduction="mean"` divides by k1.
    Raises ValueError for k1 < 1, k2 < k1, burn_in < 0. Biased: a loss's gradient at steps before its window is dropped.
    Cost: k2 / k1 forwards and backwards of each step, and burn_in / k1 forwards; memory for k2 steps. Buffers that
    track their inputs, such as batch norm's, see the steps of a burn-in once more.

    >>> import bptt
    >>> [w.start for w in bptt.TruncatedBPTT(k1=2, k2=5).windows(lambda t: min(t, 7), draw=lambda: 0.0)]
    [0, 0, 1, 3]

    Source: Williams & Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", Neural Computation 2(4), BPTT(h; h') with h = k2 and h' = k1; Kapturowski et al. 2019, "Recurrent
    experience replay in distributed reinforcement learning" (R2D2), for burn_in.
    """

    k1: int
    k2: int | None = None
    burn_in: int = 0

    def __post_init__(self) -> None:
        check_count(self.k1, f"{self!r}: k1")
        if isinstance(self.burn_in, bool) or not isinstance(self.burn_in, int) or self.burn_in < 0:
            raise ValueError(f"{self!r}: burn_in must be a whole number of steps, 0 or more.")
        if self.k2 is None:
            return
        check_count(self.k2, f"{self!r}: k2")
        if self.k2 < self.k1:
            raise ValueError(
                f"{self!r}: k2 must be at least k1, or some losses get no gradient. Use k2={self.k1} or more."
            )

    def __repr__(self) -> str:
        more = f", burn_in={self.burn_in!r}" if self.burn_in else ""
        return f"TruncatedBPTT(k1={self.k1!r}, k2={self.k2!r}{more})"

    def __eq__(self, other: object) -> bool:
        """k2=None is k2=k1."""
        return isinstance(other, TruncatedBPTT) and self._numbers() == other._numbers()

    def __hash__(self) -> int:
        return hash(self._numbers())

    def _numbers(self) -> tuple[int, int, int]:
        return self.k1, self.reach, self.burn_in

    @property
    def words(self) -> str:
        """In a phrase."""
        through = "" if self.k2 in (None, self.k1) else f", through the last {self.k2}"
        before = f", after a burn-in of {self.burn_in} steps" if self.burn_in else ""
        return f"an update every {self.k1} step{'s' * (self.k1 > 1)}{through}{before}; what lies before is cut off"

    @property
    def reach(self) -> int:
        """k2."""
        return self.k1 if self.k2 is None else self.k2

    @property
    def spec(self) -> str:
        """ "tbptt:K1", "tbptt:K1:K2" or "tbptt:K1:K2:BURN_IN"."""
        if self.burn_in:
            return f"tbptt:{self.k1}:{self.reach}:{self.burn_in}"
        return f"tbptt:{self.k1}" + (f":{self.k2}" if self.k2 not in (None, self.k1) else "")

    def windows(self, upto: Upto, draw: Draw, progress: int | None = None) -> Iterator[Window]:
        """The blocks of k1 losses, each with its graph."""
        reach = 0 if self.k2 is None else self.k2 - self.k1
        a = progress or 0
        while (b := upto(a + self.k1)) > a:
            start, keep = max(0, a - reach), max(0, b - reach - self.burn_in)
            yield Window(start, a, b, keep, progress=b, burn_in=min(self.burn_in, start))
            a = b

    def divisor(self, window: Window) -> float:
        """k1, for a short last block too."""
        return self.k1
