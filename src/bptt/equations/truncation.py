"""What the three truncations do to the double sum: the weight that each of its terms gets."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bptt.equations.gradients import Gradient, gradient_by_double_sum, gradient_by_recursion
from bptt.equations.steps import Trace


def full_weights(steps: int) -> Tensor:
    """The weights of the full gradient.

        ω_tk = 1 for k <= t                                                               (1)

    steps: T, >= 1. Returns (T, T), float64, zero above the diagonal. Raises ValueError for T = 0.

    >>> full_weights(2)
    tensor([[1., 0.],
            [1., 1.]], dtype=torch.float64)
    """
    return torch.ones(_count(steps, "steps"), steps, dtype=torch.float64).tril()


def truncated_weights(steps: int, tau: int) -> Tensor:
    """The weights of the sum that keeps its last τ terms: what `TruncatedBPTT(k1=1, k2=τ)` computes.

        ω_tk = 1 for t - τ < k <= t, else 0                                               (1)

    steps: T, >= 1. tau: terms kept, >= 1; T or more is the full gradient.
    Returns (T, T), float64. Raises ValueError for steps or tau below 1.

    >>> truncated_weights(3, tau=2)
    tensor([[1., 0., 0.],
            [1., 1., 0.],
            [0., 1., 1.]], dtype=torch.float64)

    Source: Williams & Peng 1990, BPTT(h), Neural Computation 2(4).
    """
    return full_weights(steps).triu(1 - _count(tau, "tau"))


def subsequence_boundaries(steps: int, length: int) -> Tensor:
    """The boundary weights of subsequences of one length.

        w_t = 0 where t is a multiple of length, else 1                                   (1)

    steps: T, >= 1. length: >= 1; T or more is the full gradient.
    Returns (T,), float64. Raises ValueError for steps or length below 1.

    >>> subsequence_boundaries(5, length=2)
    tensor([0., 1., 0., 1., 0.], dtype=torch.float64)
    """
    return (torch.arange(_count(steps, "steps")) % _count(length, "length") != 0).to(torch.float64)


def subsequence_weights(steps: int, length: int) -> Tensor:
    """The weights of the sum cut into subsequences: what `TruncatedBPTT(k1=length, k2=length)` computes.

        ω_tk = 1 where k <= t lie in one subsequence, ⌊k / length⌋ = ⌊t / length⌋, else 0     (1)

    steps: T, >= 1. length: >= 1. Returns (T, T), float64. Raises ValueError for steps or length below 1.

    >>> subsequence_weights(3, length=2)
    tensor([[1., 0., 0.],
            [1., 1., 0.],
            [0., 0., 1.]], dtype=torch.float64)
    """
    number = torch.arange(_count(steps, "steps")) // _count(length, "length")
    return full_weights(steps) * (number.unsqueeze(1) == number)


def pair_weights(boundaries: Tensor) -> Tensor:
    """The weights of the terms: each is the product of the weights of the boundaries that the term crosses.

        ω_tk = Π_{j=k+1..t} w_j                                                           (1)

    boundaries: w, (T,), w_j being that of the boundary between the steps j - 1 and j; w_0 isn't used.
    Returns (T, T), float64, zero above the diagonal. Cost: T².

    >>> import torch
    >>> pair_weights(torch.tensor([1.0, 2.0, 3.0]))
    tensor([[1., 0., 0.],
            [2., 1., 0.],
            [6., 3., 1.]], dtype=torch.float64)
    """
    steps = len(boundaries)
    omega = full_weights(steps).to(boundaries.device)
    for t in range(1, steps):
        omega[t, :t] = boundaries[t] * omega[t - 1, :t]
    return omega


@dataclass(frozen=True)
class ARTBPPattern:
    """One outcome of ARTBP's draws over T steps: which boundaries were cut, and the weights that make up for it.

        p_t = 1 - Π_k (1 - law(k)), k = 1, 2, ... steps since the last cut, those since the draw before   (1)
        w_t = 0 with probability p_t, a cut, else 1 / (1 - p_t)                                          (2)
        ω_tk = Π_{j=k+1..t} w_j                                                                          (3)

    steps: T, >= 1. cuts: the boundaries that were cut, each in 1 .. T-1; boundary t lies between steps t - 1 and t.
    law: the hazard law(k), in [0, 1), of a cut after the k-th step since the last one: a `bptt.PolynomialLaw`, a
        `bptt.ConstantLaw`, or any function of k = 1, 2, ...
    every: draws are made at the boundaries that are multiples of it; 1 is the source's choice, where p_t = law(k).

    Raises ValueError for cuts where no draw is made, and for a law outside [0, 1).

    >>> pattern = ARTBPPattern(steps=4, cuts=(2,), law=lambda k: 0.5)
    >>> pattern.boundaries
    tensor([1., 2., 0., 2.], dtype=torch.float64)
    >>> pattern.probability
    0.125

    Source: Tallec & Ollivier 2017, proposition 1, https://arxiv.org/abs/1705.08209; `every` is ours.
    """

    steps: int
    cuts: tuple[int, ...]
    law: Callable[[int], float]
    every: int = 1

    def __post_init__(self) -> None:
        _count(self.steps, "steps")
        _count(self.every, "every")
        object.__setattr__(self, "cuts", tuple(sorted(set(self.cuts))))
        for cut in self.cuts:
            if not 1 <= cut < self.steps or cut % self.every:
                where = f"1 .. {self.steps - 1}" + (f", in multiples of {self.every}" if self.every > 1 else "")
                raise ValueError(f"cuts={self.cuts}: no draw is made at boundary {cut}, only at {where}.")
        _ = self.hazards  # calls the law, which may be invalid

    @cached_property
    def hazards(self) -> tuple[float, ...]:
        """p_t of equation (1) for t = 0 .. T-1; 0 at boundaries without a draw, of which 0 is one."""
        p, last_cut = [0.0] * self.steps, 0
        for t in range(self.every, self.steps, self.every):
            since = range(t - self.every - last_cut + 1, t - last_cut + 1)
            p[t] = 1 - math.prod(1 - self._law(k) for k in since)
            last_cut = t if t in self.cuts else last_cut
        return tuple(p)

    @cached_property
    def boundaries(self) -> Tensor:
        """w of equation (2), (T,), float64, for `gradient_by_recursion`; w_0 = 1 isn't used."""
        w = [0.0 if t in self.cuts else 1 / (1 - p) for t, p in enumerate(self.hazards)]
        return torch.tensor(w, dtype=torch.float64)

    @cached_property
    def weights(self) -> Tensor:
        """ω of equation (3), (T, T), float64, for `gradient_by_double_sum`."""
        return pair_weights(self.boundaries)

    @cached_property
    def probability(self) -> float:
        """The probability of exactly these cuts: Π p_t over the cuts times Π (1 - p_t) over the other boundaries."""
        return math.prod(p if t in self.cuts else 1 - p for t, p in enumerate(self.hazards))

    def _law(self, k: int) -> float:
        p = float(self.law(k))
        if not 0 <= p < 1:
            raise ValueError(f"the law gave {p!r} at k={k}: a hazard must lie in [0, 1), for w = 1 / (1 - p).")
        return p


def truncated_gradient(trace: Trace, tau: int) -> Gradient:
    """The gradient whose sums keep their last τ terms, k = t-τ+1 .. t: that of `TruncatedBPTT(k1=1, k2=τ)`.

        dL/dW ≈ Σ_t Σ_{k = max(0, t-τ+1) .. t} δ_tk h_{k-1}ᵀ                               (1)

    tau: terms kept, >= 1. Returns a `Gradient`; raises and costs as `gradient_by_double_sum`.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> truncated_gradient(forward(network, torch.ones(3, 1), torch.zeros(3, 1)), tau=1).W
    tensor([[4.1250]], dtype=torch.float64)
    """
    return gradient_by_double_sum(trace, truncated_weights(trace.steps, tau))


def subsequence_gradient(trace: Trace, length: int) -> Gradient:
    """The gradient if nothing crosses from one subsequence to the next: that of `TruncatedBPTT(length, length)`.

        c_t = Vᵀ e_t + w_{t+1} Wᵀ D_{t+1} c_{t+1},  w = 0 at multiples of length, else 1   (1)

    length: steps of a subsequence, >= 1; states are carried over. Returns a `Gradient`; raises and costs as
    `gradient_by_recursion`.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> subsequence_gradient(forward(network, torch.ones(3, 1), torch.zeros(3, 1)), length=1).W
    tensor([[4.1250]], dtype=torch.float64)
    """
    return gradient_by_recursion(trace, subsequence_boundaries(trace.steps, length))


def artbp_gradient(trace: Trace, pattern: ARTBPPattern) -> Gradient:
    """The gradient that ARTBP computes if its draws give `pattern`; its mean over all patterns is the full gradient.

        c_t = Vᵀ e_t + w_{t+1} Wᵀ D_{t+1} c_{t+1},  w as in `ARTBPPattern`                 (1)
        Σ_patterns probability · gradient = dL/dθ                                         (2)

    Returns a `Gradient`; raises ValueError where the pattern has another T; costs as `gradient_by_recursion`.

    >>> import torch
    >>> from bptt.equations import Network, forward
    >>> network = Network(U=torch.ones(1, 1), W=torch.full((1, 1), 0.5), V=torch.ones(1, 1))
    >>> trace = forward(network, torch.ones(2, 1), torch.zeros(2, 1))
    >>> patterns = [ARTBPPattern(steps=2, cuts=cuts, law=lambda k: 0.5) for cuts in ((), (1,))]
    >>> sum(pattern.probability * artbp_gradient(trace, pattern).W for pattern in patterns)
    tensor([[1.5000]], dtype=torch.float64)
    """
    return gradient_by_recursion(trace, pattern.boundaries)


def _count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number of at least 1.")
    return value
