"""How many lags to keep for a relative bias of the gradient, from how credit fades with lag.

    E(K) = Σ_{k>=K} φ_k,  φ_{k+1} <= β φ_k for k >= τ                                     (1)
         = φ_τ β^(K-τ) / (1-β) for K >= τ,  Σ_{k=K..τ-1} φ_k + φ_τ / (1-β) for K < τ      (2)
    δ(K) = E(K) / max_K' (‖ĝ_K'‖ - E(K'))                                                 (3)

φ_k is the mean norm of a loss's cotangent at lag k. ĝ_K is the mean of the cotangents summed over the lags below K:
this is what a truncation to K lags keeps, and E(K) bounds what it drops.

Source: Aicher, Foti & Fox 2019, "Adaptively truncating backpropagation through time to control gradient bias",
https://arxiv.org/abs/1905.07473. Deviation: one denominator for all K, the best lower bound on the full gradient.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from statistics import linear_regression

from bptt.strategies.windows import Credit

TAIL = 0.6
"""τ as a share of the lags that were measured."""
NEGLIGIBLE = -50.0
"""log(φ_k / max φ) below which a lag is mere rounding and doesn't count for β."""


@dataclass(frozen=True)
class Decision:
    """Why a window of `AdaptiveTruncatedBPTT` is as long as it is: what its last probe found and led to.

    k: losses per window, each reaching back k to 2k - 1 steps, counting its own. step: where the probe began.
    estimate: the K of this probe alone; k is the mean of the last estimates.
    bias: δ(k) of (3), the bound on the relative bias, of this probe. decay: β of (1).
    norms: φ_k by lag, k = 0, 1, ...
    """

    k: int
    step: int
    estimate: int
    bias: float
    decay: float
    norms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Decay:
    """Equations (1) to (3) for one probe. `known` is False if there is too little credit, or none, to judge by.

    >>> lags = [0.9**k for k in range(100)]
    >>> sums = [10 * (1 - 0.9**(k + 1)) for k in range(100)]
    >>> Decay(Credit(lags, sums)).smallest(tolerance=0.5, k_min=1, k_max=100)
    7
    """

    credit: Credit

    @property
    def known(self) -> bool:
        """Whether there are enough lags for a slope, all finite, and any credit in them."""
        norms = self.credit.norms
        return len(norms) >= 3 and all(map(math.isfinite, norms)) and max(norms) > 0

    @property
    def tau(self) -> int:
        """Where the tail begins."""
        lags = len(self.credit.norms)
        return min(int(TAIL * lags), lags - 2)

    @cached_property
    def beta(self) -> float:
        """β: the slope of log φ_k over the lags of the tail, by least squares; 0 if the tail has faded away."""
        norms = self.credit.norms
        least = max(norms) * math.exp(NEGLIGIBLE)
        points = [(k, math.log(norms[k])) for k in range(self.tau, len(norms)) if norms[k] > least]
        return math.exp(linear_regression(*zip(*points, strict=True)).slope) if len(points) > 1 else 0.0

    @cached_property
    def _near(self) -> list[float]:
        """E(0) .. E(τ) of (2)."""
        norms = self.credit.norms[: self.tau]
        tail = self.credit.norms[self.tau] / (1 - self.beta)
        return list(accumulate(reversed(norms), initial=tail))[::-1]

    @cached_property
    def _whole(self) -> float:
        """The denominator of (3)."""
        return max(kept - self.dropped(k) for k, kept in enumerate(self.credit.sums, 1))

    def dropped(self, k: int) -> float:
        """E(k) of (2); infinite if credit doesn't fade."""
        if self.beta >= 1:
            return math.inf
        return self._near[k] if k <= self.tau else self._near[-1] * self.beta ** (k - self.tau)

    def bias(self, k: int) -> float:
        """δ(k) of (3); infinite if no lower bound on the gradient is above zero."""
        return self.dropped(k) / self._whole if self._whole > 0 else math.inf

    def smallest(self, tolerance: float, k_min: int, k_max: int) -> int:
        """The smallest K with δ(K) < tolerance, k_max if there is none."""
        return next((k for k in range(k_min, k_max) if self.bias(k) < tolerance), k_max)
