"""What `compare` estimates: bias and variance of a strategy with intervals, and its costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.strategies.base import Strategy, says

CONFIDENCE = 0.99
ESTIMATES = ("bias", "signed_bias", "cosine", "variance")
COSTS = ("seconds", "memory_bytes", "updates", "forward_steps", "backward_steps")


class Estimate(NamedTuple):
    """A value and the ends of its 99 % interval; all three are equal where nothing was random."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Deviation:
    """How far a gradient g lies from the exact one g*, every entry in units of ‖g*‖; NaN where that is zero.

        bias = ‖E g - g*‖ / ‖g*‖,             signed_bias = <E g - g*, g*> / ‖g*‖²        (1)
        cosine = E [<g, g*> / (‖g‖ ‖g*‖)],    variance = E ‖g - E g‖² / ‖g*‖²             (2)

    Each an `Estimate`, from n draws of mean m and variance s² = Σ ‖g - m‖² / (n - 1). signed_bias and cosine: means of
    a number a draw, with t intervals. bias: √(‖m - g*‖² - s² / n), or 0, since ‖m - g*‖² is s² / n too large in the
    mean; its interval is ‖m - g*‖ ± t s / √n, in one dimension the usual one, in more rather too wide. variance: s² is
    the mean of the n - 1 terms (1 - 1/i) ‖g_i - m_{i-1}‖², independent for normal draws, and has the t interval of
    that mean. The intervals hold for many draws, and are too short as long as the rare draws that make up the variance
    haven't come up: so for `ConstantLaw` on gradients that fade slowly.

    Source: Székely & Bakirov 2003, "Extremal probabilities for Gaussian quadratic forms", Probab. Theory Relat. Fields
    126, for the interval of the bias: of all Σ_i λ_i Z_i² with Σ_i λ_i = 1 a single Z² has the heaviest far tail.
    """

    bias: Estimate
    signed_bias: Estimate
    cosine: Estimate
    variance: Estimate


@dataclass(frozen=True)
class Compared(Deviation):
    """One strategy of a `Comparison`: the `Deviation` of its whole gradient, that of each parameter, and the cost.

    strategy: as it was passed. draws: runs that the estimates are from; 1 for a strategy that draws no numbers.
    parameters: name -> `Deviation` of that parameter's gradient, in units of the norm of its own exact one.
    seconds: wall time of a run, the median. memory_bytes: the largest `Update.memory_bytes`.
    updates, forward_steps, backward_steps: a run's, the mean over draws: windows; steps run, replays included; steps
        differentiated.
    """

    strategy: Strategy
    draws: int
    parameters: dict[str, Deviation]
    seconds: float
    memory_bytes: float
    updates: float
    forward_steps: float
    backward_steps: float

    @property
    def kind(self) -> str:
        """What the strategy says of itself, "exact", "unbiased" or "biased"; "biased" where it was found to be.

        Found to be: without draws, more than 1e-4 from the exact gradient; with draws, a signed bias whose interval,
        made twice as wide, doesn't hold zero.
        """
        value, low, high = self.signed_bias
        off = self.bias.value > 1e-4 if self.draws == 1 else abs(value) > high - low
        return "biased" if off else says(self.strategy, "kind")


class Draws:
    """Gradients of some parameters as they are drawn. Kept are one mean and, of each draw, three numbers a parameter.

    exact: the exact gradient, one flat float64 tensor a parameter; so is every gradient that is added.
    """

    def __init__(self, exact: Sequence[Tensor]) -> None:
        self._exact = exact
        self._drift = [torch.zeros_like(e) for e in exact]  # the mean of g - g*
        self._draws: list[list[tuple[float, float, float]]] = []

    def add(self, gradient: Sequence[Tensor]) -> None:
        """One more draw."""
        n, numbers = len(self._draws) + 1, []
        for g, exact, drift in zip(gradient, self._exact, self._drift, strict=True):
            away = g - exact
            step = away - drift
            drift += step / n
            numbers.append((_dot(away, exact), _dot(g, g), _dot(step, away - drift)))
        self._draws.append(numbers)

    def deviations(self) -> list[Deviation]:
        """That of each parameter, and last that of all together."""
        draws = torch.tensor(self._draws, dtype=torch.float64)
        exact = torch.tensor([_dot(e, e) for e in self._exact], dtype=torch.float64)
        drift = torch.tensor([_dot(d, d) for d in self._drift], dtype=torch.float64)
        parts = [(draws[:, i], exact[i].item(), drift[i].item()) for i in range(len(exact))]
        whole = (draws.sum(1), exact.sum().item(), drift.sum().item())
        return [_deviation(*part) for part in (*parts, whole)]


def _deviation(draws: Tensor, exact: float, drift: float) -> Deviation:
    """draws: (n, 3), of each draw <g - g*, g*>, ‖g‖² and (1 - 1/i) ‖g - m_{i-1}‖². exact: ‖g*‖². drift: ‖m - g*‖²."""
    along, squares, spread = draws.unbind(1)
    n, unit = len(draws), exact or math.nan
    bias, variance = math.sqrt(drift / unit), Estimate(0.0, 0.0, 0.0)
    reach = error = 0.0
    if n > 1:
        value, low, high = _mean(spread[1:] / unit)
        variance = Estimate(value, max(low, 0.0), high)
        error = value / n
        reach = student(n - 1) * math.sqrt(error)
    return Deviation(
        bias=Estimate(
            math.sqrt(max(bias * bias - error, 0.0)) if error else bias, max(bias - reach, 0.0), bias + reach
        ),
        signed_bias=_mean(along / unit),
        cosine=_mean((along + exact) / (squares * unit).sqrt()),
        variance=variance,
    )


def _mean(samples: Tensor) -> Estimate:
    """The mean with its t interval; of one sample that is known to be all there is, the sample."""
    n, value = len(samples), samples.mean().item()
    reach = student(n - 1) * samples.std().item() / math.sqrt(n) if n > 1 else 0.0
    return Estimate(value, value - reach, value + reach)


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a, b).item()


@cache
def student(freedom: int) -> float:
    """The t that |T| stays below with probability 0.99, T of Student's distribution with so many degrees of freedom.

    >>> [round(student(n), 3) for n in (1, 2, 9, 30)]
    [63.657, 9.925, 3.25, 2.75]

    Source: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4, inverted by bisection.
    """

    def inside(angle: float) -> float:
        odd = freedom % 2
        term = math.cos(angle) if odd else 1.0
        total = term if freedom > 1 else 0.0
        for j in range(2 + odd, freedom - 1, 2):
            term *= (j - 1) / j * math.cos(angle) ** 2
            total += term
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < CONFIDENCE else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
