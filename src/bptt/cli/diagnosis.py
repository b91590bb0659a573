"""A diagnosis on the screen: what was found as tables, and what it means for the choice of a truncation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

import bptt
from bptt.analysis import ladder, number, share
from bptt.cli.screen import Screen
from bptt.cli.strategies import first
from bptt.strategies import says

ENOUGH = 0.1
"""A truncation that drops less than this share of the gradient is named."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything to show.

    Arguments:
        found: what `bptt.diagnose` says; its `dropped` is the share for `tbptt:1:K`.
        windows: K -> the share of the gradient that `tbptt:K` drops.
        own: the strategy the run was trained with; None for first weights.
        own_dropped: its share, where `own` truncates at fixed places.
        own_name: as `--strategy` takes it.
    """

    found: bptt.Diagnosis
    windows: dict[int, float]
    own: Any
    own_dropped: float
    own_name: str | None

    @property
    def credit(self) -> torch.Tensor:
        """(1 + levels, max_lag): mean and quantiles of a loss's cotangent by lag, of each lane's own loss."""
        found = self.found  # its losses are averaged over the lanes
        return found.rows * torch.cat([found.mean[None], found.quantiles])


def show(screen: Screen, measured: Measured) -> None:
    """Print the whole diagnosis."""
    found = measured.found
    for name, text in _summary(found).items():
        screen.say(f"{name:<12}{text}")
    screen.say("\ncredit by lag: norm of a loss's gradient at the state so many steps before")
    levels = ["median" if level == 0.5 else f"{level:.0%}" for level in found.levels]
    screen.table(["lag", "mean", *levels, "of lag 1"], _credit(measured))
    screen.say("\nshare of the gradient that a truncation drops")
    names = ["K", "tbptt:1:K, each loss through K steps", "tbptt:K, windows of K steps"]
    screen.table(names, [[str(k), share(found.dropped[k]), share(measured.windows[k])] for k in measured.windows])
    if found.singular_values:
        screen.say(f"\nsingular values of the state's Jacobian over so many steps, {found.state_size} directions")
        screen.table(["steps", "largest", "above 1", "above 0.1", "above 0.01"], _singular(found))
    screen.say("")
    for sentence in advice(measured):
        screen.say(sentence)


def _summary(found: bptt.Diagnosis) -> dict[str, str]:
    largest = found.exponents.mean(0)[:4].tolist()
    shown = ", ".join(f"{value:.3g}" for value in largest)
    rows = {
        **{name: found.summary()[name] for name in ("regime", "memory")},
        "lyapunov": f"{shown}: the {len(largest)} largest exponents of {found.state_size}",
    }
    if found.spectral_radius:
        values = ", ".join(f"{value:.3g} of {name}" for name, value in found.spectral_radius.items())
        rows["radius"] = f"{values} (largest |eigenvalue|)"
    return rows


def _credit(measured: Measured) -> list[list[str]]:
    credit = measured.credit
    lags = ladder(credit.shape[1])
    first = credit[0, 0].item()
    rows = []
    for lag in lags:
        values = credit[:, lag - 1].tolist()
        rows.append([str(lag), *map(number, values), share(values[0] / first if first else math.nan)])
    return rows


def _singular(found: bptt.Diagnosis) -> list[list[str]]:
    """Means over the lanes. How many lie above a bound is no matter of rounding, as the smallest would be."""
    return [
        [str(lag), number(values[:, 0].mean().item())]
        + [f"{(values > bound).double().sum(1).mean().item():.3g}" for bound in (1, 0.1, 0.01)]
        for lag, values in found.singular_values.items()
    ]


def advice(measured: Measured) -> list[str]:
    """What follows for `--strategy`, in a sentence or two."""
    steps, name, own = measured.found.steps, measured.own_name, measured.own
    said = []
    if own is not None:
        said.append(f"{name}, this run's strategy, {_of_own(own, steps, measured.own_dropped)}.")
    known = {tau: value for tau, value in measured.found.dropped.items() if not math.isnan(value)}
    if not known:
        return [*said, "The gradient is zero, so there is nothing to drop."]
    window = next((k for k, dropped in measured.windows.items() if dropped < ENOUGH), None)
    each = next((tau for tau, dropped in known.items() if dropped < ENOUGH), None)
    if window is None and each is None and measured.found.regime == "exploding":
        return [*said, "Credit grows with the lag, so that every truncation above drops much of the gradient."]
    if window is None and each is None:
        return [*said, f"Every truncation above drops {ENOUGH:.0%} or more; a larger --length shows longer ones."]
    shortest = [] if window is None else [f"tbptt:{window}"]
    if each is not None:
        shortest.append(f"{each} step{'s' * (each > 1)} for each loss")
    said.append(f"The shortest above to drop less than {ENOUGH:.0%}: {', or '.join(shortest)}.")
    if each is not None:
        said.append("tbptt:K1:K2 gives each loss K2 - K1 + 1 steps or more.")
    return said


def _of_own(strategy: Any, steps: int, dropped: float) -> str:
    """What a strategy drops of the gradient of so many steps."""
    kind = says(strategy, "kind")
    if kind == "unbiased":
        return "drops nothing on average, at the price of noise"
    if kind == "exact":
        return "drops nothing within a sequence"
    if not says(strategy, "lengths_known"):
        return "chose its length on the way"
    if not truncates(strategy):
        return "is biased: what its cuts drop, no factors make up for"
    windows = strategy.windows(lambda t: int(min(t, steps)), lambda **_: 0.5)
    if all(window.start == 0 and not window.weights for window in windows):
        return f"cuts nothing in {steps} steps; give a larger --length"
    return f"drops {share(dropped)} of this gradient"


def truncates(strategy: Any) -> bool:
    """Whether a strategy cuts at places that are known beforehand, so that one backward pass shows what it drops."""
    return says(strategy, "kind") == "biased" and says(strategy, "lengths_known") and first(strategy) is not None
