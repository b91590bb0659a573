"""What `diagnose` returns: credit by lag and its rate of growth, as numbers, a table, a plot and a verdict."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bptt.analysis.numbers import ladder, number, share
from bptt.analysis.shown import Shown, Table, axes

ENOUGH = 0.1
"""A truncation that drops less than this share of the gradient is named."""


@dataclass(frozen=True, eq=False)
class Diagnosis(Shown):
    """What `diagnose` found; tensors are float64 on the CPU, rates are in nats a step.

    Printed, or at the end of a notebook's cell, it is credit by lag as a table and the verdict.

    steps: T. rows: batch rows told apart (1 without a `state_batch_dim`). state_size: real numbers of state per row, in
        the leaves of the state that some loss depends on: all else is left out.
    norms: (max_lag, T, rows), entry [k-1, t, b] the 2-norm of row b of ∂l_t/∂s_{t-k}; NaN where t - k < -1.
    mean: (max_lag,), of `norms` over t and rows. quantiles: (levels, max_lag), over t and rows. levels: which.
    growth_rates: (rows,), of a generic cotangent by the renormalised product: the top exponent, or the mean of the top
        two where they are as near as those of a complex pair may come out (10 / counted steps, 0.02 at most).
    exponents: (rows, n), the leading Lyapunov exponents, sorted.
    singular_values: lag k -> (rows, state_size), those of ∂s_{T-1}/∂s_{T-1-k}, sorted; what lies below the state's
        precision times the largest is rounding.
    memory_length: the first lag from which on `mean` stays below `fraction` of its largest entry; None if it doesn't
        within max_lag. spectral_radius: parameter -> largest |eigenvalue| of it.
    gradient_norm: over all parameters, ‖dL/dθ‖ with L = Σ_t l_t. dropped: τ -> the share ‖dL/dθ - g_τ‖ / ‖dL/dθ‖ that
        `TruncatedBPTT(1, τ)` drops, g_τ its gradient; may be above 1 where terms cancel, NaN where there is none.
    """

    steps: int
    rows: int
    state_size: int
    norms: Tensor
    mean: Tensor
    quantiles: Tensor
    levels: tuple[float, ...]
    growth_rates: Tensor
    exponents: Tensor
    singular_values: dict[int, Tensor]
    memory_length: int | None
    fraction: float
    spectral_radius: dict[str, float]
    gradient_norm: float
    dropped: dict[int, float]

    @property
    def growth_rate(self) -> float:
        """The mean of `growth_rates` over rows, in nats a step."""
        return self.growth_rates.mean().item()

    @property
    def regime(self) -> str:
        """ "vanishing", "exploding", or "marginal": a cotangent changes by no more than a factor e over T steps.

        "undefined" where every step that counts is a reset.
        """
        change = self.growth_rate * self.steps
        if math.isnan(change):
            return "undefined"
        return "vanishing" if change < -1 else "exploding" if change > 1 else "marginal"

    def verdict(self) -> str:
        """The regime, how far credit reaches, and the shortest truncation that drops little: a line each."""
        return "\n".join(f"{name}: {said}" for name, said in self.summary().items())

    def summary(self) -> dict[str, str]:
        """Title -> sentence: regime, memory, truncation."""
        return {"regime": self._regime(), "memory": self._memory(), "truncation": self._truncation()}

    def _regime(self) -> str:
        rate = self.growth_rate
        if not math.isfinite(rate):
            return f"{self.regime}: of a cotangent nothing is left after {self.steps} steps"
        pace = f"a factor e every {1 / abs(rate):.3g} steps"
        if self.regime == "marginal":
            pace = f"at most a factor e in {self.steps} steps"
        return f"{self.regime}, {round(rate, 5):+.3g} nats a step: {pace}"

    def _memory(self) -> str:
        lags, largest = len(self.mean), self.mean.max().item()
        if not largest > 0:
            return "none: no loss depends on a state before its own step"
        if self.memory_length is None:
            last = share(self.mean[-1].item() / largest)
            return f"over {lags} steps: mean credit at lag {lags} is {last} of its largest"
        return f"{self.memory_length} steps: from that lag on mean credit is below {self.fraction:.0%} of its largest"

    def _truncation(self) -> str:
        known = {tau: dropped for tau, dropped in self.dropped.items() if not math.isnan(dropped)}
        if not known:
            return "the gradient is zero, so there is nothing to drop"
        enough = next((tau for tau, dropped in known.items() if dropped < ENOUGH), None)
        if enough is None:
            return f"each loss through {max(known)} steps still drops {share(known[max(known)])} of the gradient"
        steps = f"{enough} step{'s' * (enough > 1)}"
        return f"each loss through {steps} drops {share(known[enough])} of the gradient, {ENOUGH:.0%} being allowed"

    def table(self) -> Table:
        """Mean and quantiles of the norm of a loss's gradient at the state, by lag, and what each truncation drops."""
        levels = ["median" if level == 0.5 else f"{level:.0%}" for level in self.levels]
        rows = [
            [str(lag), *map(number, (self.mean[lag - 1].item(), *self.quantiles[:, lag - 1].tolist()))]
            + ([share(self.dropped[lag])] if lag in self.dropped else [""])
            for lag in sorted({*ladder(len(self.mean)), *self.dropped})
        ]
        return Table(["lag", "mean", *levels, "dropped"], rows)

    def records(self) -> list[dict[str, Any]]:
        """One for each lag: mean, quantiles as `q10`, and `dropped`, None where that truncation wasn't asked for."""
        return [
            {
                "lag": lag,
                "mean": self.mean[lag - 1].item(),
                **{
                    f"q{100 * level:g}": q.item()
                    for level, q in zip(self.levels, self.quantiles[:, lag - 1], strict=True)
                },
                "dropped": self.dropped.get(lag),
            }
            for lag in range(1, len(self.mean) + 1)
        ]

    def plot(self, ax: Any = None) -> Any:
        """Credit by lag on a log scale: mean, the band of the outer quantiles, the rate of growth, the memory's end."""
        return _plot(self, axes(ax))


def _plot(found: Diagnosis, ax: Any) -> Any:
    """Credit by lag, its mean and the band of its outer quantiles, with the memory's length and the rate of growth."""
    lags = range(1, len(found.mean) + 1)
    ax.plot(lags, found.mean, color="C0", label="mean")
    if len(found.levels) > 1:
        low, high = found.levels[0], found.levels[-1]
        ax.fill_between(
            lags, found.quantiles[0], found.quantiles[-1], color="C0", alpha=0.2, label=f"{low:.0%} to {high:.0%}"
        )
    if math.isfinite(found.growth_rate):
        line = found.mean[0] * (found.growth_rate * (found.mean.new_tensor(list(lags)) - 1)).exp()
        ax.plot(lags, line, color="C1", linestyle="--", label=f"{found.growth_rate:+.3g} nats a step")
    if found.memory_length is not None:
        told = f"{found.memory_length} steps: below {found.fraction:.0%} of the largest"
        ax.axvline(found.memory_length, color="C2", linestyle=":", label=told)
    if (found.mean > 0).any():
        ax.set_yscale("log")
    ax.set_xlabel("lag, steps")
    ax.set_ylabel("norm of a loss's gradient at the state")
    ax.set_title(f"Credit by lag: {found.regime}")
    ax.legend()
    return ax
