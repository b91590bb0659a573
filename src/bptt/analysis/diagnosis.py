"""What `diagnose` returns: credit by lag and its rate of growth, as numbers, a table, a plot and a verdict."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bptt.analysis.numbers import ladder, number, share
from bptt.analysis.shown import Shown, Table, Titled, axes

ENOUGH = 0.1
"""A truncation that drops less than this share of the gradient is named."""
EACH, WINDOWS = "each loss through K steps", "windows of K steps"
"""The two kinds of truncation in words."""
BOUNDS = (1, 0.1, 0.01)
"""How many singular values lie above these is told."""


@dataclass(frozen=True, eq=False)
class Diagnosis(Shown):
    """What `diagnose` found; tensors are float64 on the CPU, rates are in nats per step.

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
        windows: the same of `TruncatedBPTT(τ)`, whose windows are τ steps.
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
    windows: dict[int, float]

    @property
    def growth_rate(self) -> float:
        """The mean of `growth_rates` over rows, in nats per step."""
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
        """The regime, how far credit reaches, the exponents, and the shortest truncation that drops little: lines."""
        return "\n".join([*(f"{name}: {said}" for name, said in self.summary().items()), *self.advice()])

    def summary(self) -> dict[str, str]:
        """Title -> sentence: regime, memory, the largest Lyapunov exponents, the spectral radius where there is one."""
        largest = self.exponents.mean(0)[:4].tolist()
        exponents = ", ".join(f"{value:.3g}" for value in largest)
        said = {
            "regime": self._regime(),
            "memory": self._memory(),
            "lyapunov": f"{exponents}: the {len(largest)} largest exponents of {self.state_size}",
        }
        radii = ", ".join(f"{value:.3g} of {name}" for name, value in self.spectral_radius.items())
        return said | ({"radius": f"{radii} (largest |eigenvalue|)"} if radii else {})

    def advice(self) -> list[str]:
        """What follows for the choice of a truncation, in a sentence or two."""
        known = {tau: value for tau, value in self.dropped.items() if not math.isnan(value)}
        if not known:
            return ["The gradient is zero, so there is nothing to drop."]
        window = next((k for k, dropped in self.windows.items() if dropped < ENOUGH), None)
        each = next((tau for tau, dropped in known.items() if dropped < ENOUGH), None)
        if window is None and each is None and self.regime == "exploding":
            return ["Credit grows with the lag, so that every truncation above drops much of the gradient."]
        if window is None and each is None:
            return [f"Every truncation above drops {ENOUGH:.0%} or more; a longer sequence shows longer ones."]
        shortest = [] if window is None else [f"tbptt:{window}"]
        more = []
        if each is not None:
            shortest.append(f"{each} step{'s' * (each > 1)} for each loss")
            more = ["tbptt:K1:K2 gives each loss K2 - K1 + 1 steps or more."]
        return [f"The shortest above to drop less than {ENOUGH:.0%}: {', or '.join(shortest)}.", *more]

    def _regime(self) -> str:
        rate = self.growth_rate
        if not math.isfinite(rate):
            return f"{self.regime}: of a cotangent nothing is left after {self.steps} steps"
        pace = f"a factor e every {1 / abs(rate):.3g} steps"
        if self.regime == "marginal":
            pace = f"at most a factor e in {self.steps} steps"
        return f"{self.regime}, {round(rate, 5):+.3g} nats per step: {pace}"

    def _memory(self) -> str:
        lags, largest = len(self.mean), self.mean.max().item()
        if not largest > 0:
            return "none: no loss depends on a state before its own step"
        if self.memory_length is None:
            last = share(self.mean[-1].item() / largest)
            return f"over {lags} steps: mean credit at lag {lags} is {last} of its largest"
        return f"{self.memory_length} steps: from that lag on mean credit is below {self.fraction:.0%} of its largest"

    def tables(self) -> list[Titled]:
        """Credit by lag, the shares that truncations drop, and the singular values of the chains that were taken."""
        share_title = "share of the gradient that a truncation drops"
        found = [
            Titled("credit by lag: norm of a loss's gradient at the state so many steps before", self.table()),
            Titled(share_title, Table(["K", f"tbptt:1:K, {EACH}", f"tbptt:K, {WINDOWS}"], self._shares(), 0)),
        ]
        if self.singular_values:
            title = f"singular values of the state's Jacobian over so many steps, {self.state_size} directions"
            heads = ["steps", "largest", *(f"above {bound}" for bound in BOUNDS)]
            found.append(Titled(title, Table(heads, self._singular(), 0)))
        return found

    def table(self) -> Table:
        """Mean and quantiles of the norm of a loss's gradient at the state, by lag, and the mean's part of lag 1's."""
        levels = ["median" if level == 0.5 else f"{level:.0%}" for level in self.levels]
        first, rows = self.mean[0].item() or math.nan, []
        for lag in ladder(len(self.mean)):
            mean, quantiles = self.mean[lag - 1].item(), self.quantiles[:, lag - 1].tolist()
            rows.append([str(lag), *map(number, (mean, *quantiles)), share(mean / first)])
        return Table(["lag", "mean", *levels, "of lag 1"], rows, 0)

    def _shares(self) -> list[list[str]]:
        return [[str(tau), share(dropped), share(self.windows[tau])] for tau, dropped in self.dropped.items()]

    def _singular(self) -> list[list[str]]:
        """Means over the rows. How many lie above a bound is not a matter of rounding, as the smallest would be."""
        return [
            [str(lag), number(values[:, 0].mean().item())]
            + [f"{(values > bound).double().sum(1).mean().item():.3g}" for bound in BOUNDS]
            for lag, values in self.singular_values.items()
        ]

    def records(self) -> list[dict[str, Any]]:
        """One for each lag: mean, quantiles as `q10`, `dropped` and `windows`, None where that wasn't asked for."""
        return [
            {
                "lag": lag,
                "mean": self.mean[lag - 1].item(),
                **{
                    f"q{100 * level:g}": q.item()
                    for level, q in zip(self.levels, self.quantiles[:, lag - 1], strict=True)
                },
                "dropped": self.dropped.get(lag),
                "windows": self.windows.get(lag),
            }
            for lag in range(1, len(self.mean) + 1)
        ]

    def plot(self, ax: Any = None) -> Any:
        """Credit by lag, below it what truncations drop and the leading exponents.

        ax: axes, which get credit by lag alone; a figure, which gets all; None makes a figure. Returns the axes of the
            credit.
        """
        if ax is not None and hasattr(ax, "plot"):
            return _credit(self, ax)
        figure = ax or axes(None, 16).figure
        figure.clear()
        panels = figure.subplot_mosaic("cc;de", height_ratios=[1.2, 1])
        _dropped(self, panels["d"])
        _exponents(self, panels["e"])
        return _credit(self, panels["c"])


def _credit(found: Diagnosis, ax: Any) -> Any:
    """The mean and the band of the outer quantiles, with the memory's length and the rate of growth."""
    lags = range(1, len(found.mean) + 1)
    positive, rows = bool((found.mean > 0).any()), "1 row" if found.rows == 1 else f"{found.rows} rows"
    mean, quantiles = found.mean, found.quantiles
    if positive:
        ax.set_yscale("log")
        mean, quantiles = (each.where(each > 0, math.nan) for each in (mean, quantiles))  # zero has no place there
    ax.plot(lags, mean, color="C0", linewidth=1.8, label=f"mean over {found.steps} steps, {rows}")
    if len(found.levels) > 1:
        (low, *middle, high), (lower, *between, upper) = found.levels, quantiles
        ax.fill_between(lags, lower, upper, color="C0", alpha=0.2, linewidth=0, label=f"{low:.0%} to {high:.0%}")
        for level, values in zip(middle, between, strict=True):
            ax.plot(lags, values, color="C0", linewidth=1, linestyle="--", label="median" * (level == 0.5))
    if math.isfinite(found.growth_rate):
        line = found.mean[0] * (found.growth_rate * (found.mean.new_tensor(list(lags)) - 1)).exp()
        ax.plot(lags, line, color="C1", linestyle="--", label=f"{found.growth_rate:+.3g} nats per step")
    if found.memory_length is not None:
        told = f"below {found.fraction:.0%} of the largest from lag {found.memory_length} on"
        ax.axvline(found.memory_length, color="C2", linestyle=":", label=told)
    ax.set_xlabel("lag: steps back from a loss to the state")
    ax.set_ylabel("norm of a loss's gradient")
    ax.set_title(f"Credit by lag: {found.regime}")
    ax.legend()
    return ax


def _dropped(found: Diagnosis, ax: Any) -> None:
    """What each truncation drops, by losses and by windows."""
    each, windows = f"tbptt:1:K, {EACH}", f"tbptt:K, {WINDOWS}"
    for shares, label, colour in ((found.windows, windows, "C0"), (found.dropped, each, "C1")):
        ax.plot(list(shares), list(shares.values()), "o-", color=colour, markersize=4, label=label)
    ax.set_xscale("log")
    ax.set_xticks(list(found.windows), map(str, found.windows))
    ax.set_xticks([], minor=True)
    ax.set_ylim(0, max(0.01, 1.05 * ax.dataLim.y1))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}" if value > 1 else f"{value:.0%}")
    ax.set_xlabel("K")
    ax.set_ylabel("share of the\ngradient dropped")
    ax.legend()


def _exponents(found: Diagnosis, ax: Any) -> None:
    """The leading Lyapunov exponents, of each row and their mean; -inf, of a direction lost at once, has no place."""
    values = found.exponents.where(found.exponents.isfinite(), math.nan)
    places = range(1, values.shape[1] + 1)
    lines = ax.plot(places, values.T, color="C0", linewidth=0.8, alpha=0.4)
    lines[0].set_label("each row")
    ax.plot(places, values.mean(0), "o-", color="C0", markersize=3, label="mean")
    ax.axhline(0, color=ax.xaxis.label.get_color(), linewidth=1)
    ax.set_xlim(0, len(places) + 1)
    ax.set_xlabel(f"rank among {found.state_size} exponents")
    ax.set_ylabel("Lyapunov exponent,\nnats per step")
    ax.legend()
