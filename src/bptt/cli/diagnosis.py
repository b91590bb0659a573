"""A diagnosis on the screen: what was found as tables, and what it means for the choice of a truncation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

import bptt
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


def ladder(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to `most`.

    >>> ladder(60)
    [1, 2, 5, 10, 20, 50]
    """
    return [m * 10**e for e in range(len(str(most))) for m in (1, 2, 5) if m * 10**e <= most]


def number(value: float) -> str:
    """Three digits; "none" where there is no number.

    >>> number(0.0123456), number(0.0), number(float("nan"))
    ('0.0123', '0', 'none')
    """
    return "none" if math.isnan(value) else f"{value:.3g}"


def share(value: float) -> str:
    """A share in per cent; from ten on as so many times.

    >>> share(0.8546), share(0.00583), share(1e-9), share(1.4), share(146.2), share(float("nan"))
    ('85.5%', '0.583%', '<0.001%', '140%', '146 times', 'none')
    """
    if math.isnan(value):
        return number(value)
    if 0 < value < 1e-5:
        return "<0.001%"
    return f"{100 * value:.3g}%" if value < 9.995 else f"{value:.3g} times"


def _summary(found: bptt.Diagnosis) -> dict[str, str]:
    largest = found.exponents.mean(0)[:4].tolist()
    shown = ", ".join(f"{value:.3g}" for value in largest)
    rows = {
        "regime": _regime(found),
        "memory": _memory(found),
        "lyapunov": f"{shown}: the {len(largest)} largest exponents of {found.state_size}",
    }
    if found.spectral_radius:
        values = ", ".join(f"{value:.3g} of {name}" for name, value in found.spectral_radius.items())
        rows["radius"] = f"{values} (largest |eigenvalue|)"
    return rows


def _regime(found: bptt.Diagnosis) -> str:
    rate = found.growth_rate
    if not math.isfinite(rate):
        return f"{found.regime}: of a cotangent nothing is left after {found.steps} steps"
    pace = f"a factor e every {1 / abs(rate):.3g} steps"
    if found.regime == "marginal":
        pace = f"at most a factor e in {found.steps} steps"
    return f"{found.regime}, {round(rate, 5):+.3g} nats a step: {pace}"


def _memory(found: bptt.Diagnosis) -> str:
    lags, largest = len(found.mean), found.mean.max().item()
    if not largest > 0:
        return "none: no loss depends on a state before its own step"
    if found.memory_length is None:
        last = share(found.mean[-1].item() / largest)
        return f"over {lags} steps: mean credit at lag {lags} is {last} of its largest"
    return f"{found.memory_length} steps: from that lag on mean credit is below {found.fraction:.0%} of its largest"


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
