"""Truncation laws: the hazard p(k) of a cut after the k-th step since the last one.

A law is any function of k = 1, 2, ... that returns a probability in [0, 1). With S(k) = Π_{j<=k} (1 - p(j)) the
chance that a window outlives step k, the mean window is Σ_{k>=0} S(k).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ConstantLaw:
    """Every boundary is cut with the same probability: windows of geometric length.

        p(k) = 1 / T0                                                                     (1)

    mean_length: T0, the mean window in steps, > 1.

    The weight of a term of lag k has the second moment (1 - 1/T0)^-k, exponential in k: the gradient's variance is
    finite only if influence decays faster. `PolynomialLaw` is the safer default.

    >>> ConstantLaw(mean_length=50)(7)
    0.02

    Source: Tallec & Ollivier 2017, section 4, https://arxiv.org/abs/1705.08209
    """

    mean_length: float = 50

    def __post_init__(self) -> None:
        _check_mean_length(self)

    def __call__(self, k: int) -> float:
        return 1 / self.mean_length


@dataclass(frozen=True)
class PolynomialLaw:
    """The hazard falls as 1/k: window lengths with the tail S(k) ~ k^-alpha.

        p(k) = alpha / ((alpha - 1) T0 + k)                                               (1)

    mean_length: T0, exactly the mean window in steps, > 1.
    alpha: the exponent of the tail, > 1. The weight of a term of lag k has a second moment that grows as k^alpha:
        a small alpha keeps the variance low, at the price of a few very long windows.

    >>> law = PolynomialLaw(alpha=3, mean_length=50)
    >>> round(law(1), 6), round(law(100), 6)
    (0.029703, 0.015)

    Source: Tallec & Ollivier 2017, section 4, https://arxiv.org/abs/1705.08209, with the constant of the authors'
    code, which makes the mean exact.
    """

    alpha: float = 3
    mean_length: float = 50

    def __post_init__(self) -> None:
        _check_mean_length(self)
        if not (isinstance(self.alpha, int | float) and 1 < self.alpha < math.inf):
            raise ValueError(
                f"PolynomialLaw(alpha={self.alpha!r}): alpha must be a number above 1, or the mean window is infinite."
            )
        if math.isinf((self.alpha - 1) * self.mean_length):
            raise ValueError(
                f"{self!r}: (alpha - 1) * mean_length is beyond the largest float, so nothing would ever be cut. Use a "
                f"smaller alpha, such as 3."
            )

    def __call__(self, k: int) -> float:
        return self.alpha / ((self.alpha - 1) * self.mean_length + k)


def hazard(law: Callable[[int], float], k: int) -> float:
    """law(k), in [0, 1)."""
    p = float(law(k))
    if not 0 <= p < 1:
        raise ValueError(f"the truncation law gave {p!r} at k={k}: a probability must lie in [0, 1), for w = 1/(1-p).")
    return p


def _check_mean_length(law: ConstantLaw | PolynomialLaw) -> None:
    if not (isinstance(law.mean_length, int | float) and 1 < law.mean_length < math.inf):
        raise ValueError(
            f"{type(law).__name__}(mean_length={law.mean_length!r}): the mean window must be a number of steps above 1."
        )
