"""Carry the influence as a random product of two vectors: UORO."""

from dataclasses import dataclass

from bptt.strategies.base import Online
from bptt.strategies.windows import Carry


@dataclass(frozen=True)
class UORO(Online):
    """An unbiased but noisy gradient in windows of k1 steps: the influence is carried as a product of two vectors.

        g_w = (the gradient inside window w) + (c_a · s̃) θ̃                                (1)
        s̃ ← ρ0 D_w s̃ + ρ1 ν,  θ̃ ← θ̃ / ρ0 + νᵀ I_w / ρ1,  ν of independent random signs     (2)
        ρ0² = (|θ̃| + ε) / (|D_w s̃| + ε),  ρ1² = (|νᵀ I_w| + ε) / (|ν| + ε)                 (3)

    D_w and I_w as in `RTRL`. With frozen parameters the mean over all ν is the gradient of `FullBPTT`. ν has a sign for
    each number of the state of all rows together, drawn from `generator` once per window.
    k1: steps between updates, >= 1; nothing is approximated inside a window, so longer windows are less noisy.
    epsilon: ε of (3), > 0.

    One update for each k1 steps and one for the tail; `reduction="mean"` divides by k1. Nothing is dropped on average.
    Raises ValueError for k1 < 1 or epsilon <= 0; in a run as `RTRL` does, except that rows may depend on each other.
    Cost: beside the window's own forward and backward, a forward-mode derivative and a vjp of it (if an operator has no
    forward mode, a vjp of a vjp); memory for k1 steps, and n B + P numbers.

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
        return self.spelled("uoro") if self.epsilon == 1e-7 else None

    @property
    def carries(self) -> Carry:
        """s̃ and θ̃."""
        return Carry("product", epsilon=self.epsilon)
