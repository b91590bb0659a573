"""Errors of forecasts by horizon, beside those of forecasts that need no training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

from bptt.analysis.shown import Shown, Table, axes

LEVEL = 0.8
"""Share of the errors that the interval is to hold."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """What lies between a forecast's error and it. low, high: by horizon and target; held: share of truths inside."""

    level: float
    low: list[list[float]]
    high: list[list[float]]
    held: float


@dataclasses.dataclass(frozen=True)
class Errors(Shown):
    """Root mean squared errors on held-out steps, of a model and of forecasts that need no training.

    `Forecasts.errors` makes them; `bptt train` keeps them as `forecast.json`, which `from_dict` reads.

    targets, horizons: what was forecast, and how many steps ahead. steps: how many forecasts. rmse: by horizon, in
        units of a single target, else of the targets' deviations. baselines: name -> the same. season: steps of one.
    energy_left: share of each target's energy that is left in the error. by_target: rmse of each target in its units.
    """

    targets: tuple[str, ...]
    horizons: tuple[int, ...]
    steps: int
    rmse: tuple[float, ...]
    baselines: dict[str, tuple[float, ...]]
    season: int | None
    energy_left: tuple[float, ...]
    interval: Interval
    by_target: tuple[float, ...]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """As `Shown.from_dict`, and a `forecast.json` from before there were errors by target."""
        if isinstance(data, dict) and isinstance(data.get("targets"), list):
            data = {"by_target": [None] * len(data["targets"]), **data}
        return super().from_dict(data)

    def verdict(self) -> str:
        """At which horizons the model is better than what needs no training, and what its interval holds."""
        held = f"The {self.interval.level:.0%} interval, of errors on the validation part, holds "
        return "\n".join([*self._better(), f"{held}{self.interval.held:.0%} of these steps."])

    def _better(self) -> list[str]:
        if not self.baselines:
            return []
        best = [min(each) for each in zip(*self.baselines.values(), strict=True)]
        behind = [h for h, own, other in zip(self.horizons, self.rmse, best, strict=True) if own >= other]
        names = " and ".join(self.baselines)
        if not behind:
            return [f"Better than {names} at every horizon."]
        told = ", ".join(map(str, behind[:5])) + (", ..." if len(behind) > 5 else "")
        return [f"Not better than {names} at {told} step{'s' * (behind != [1])} ahead."]

    def table(self) -> Table:
        """Errors by horizon, those that a table has room for; of targets that aren't inputs, by target."""
        if not self.baselines:
            each = zip(self.targets, self.by_target, self.energy_left, strict=True)
            return Table(("target", "error", "of its energy"), [(n, f"{e:.4g}", f"{s:.2%}") for n, e, s in each])
        columns = {"model": self.rmse, **self.baselines}
        rows = [
            [str(self.horizons[i]), *(f"{column[i]:.4g}" for column in columns.values())] for i in shown(self.horizons)
        ]
        return Table(("steps ahead", *columns), rows, words=0)

    def records(self) -> list[dict[str, Any]]:
        """One for each horizon: horizon, model, and each forecast that needs no training."""
        columns = {"model": self.rmse, **self.baselines}
        return [{"horizon": h, **{k: v[i] for k, v in columns.items()}} for i, h in enumerate(self.horizons)]

    def plot(self, ax: Any = None) -> Any:
        """Draw the errors over the horizon; returns the axes."""
        ax = axes(ax)
        of = "" if len(self.targets) == 1 or not self.baselines else ", in deviations of the targets"
        ax.plot(self.horizons, self.rmse, "o-", color="C0", markersize=3, label="model")
        for (name, errors), dashes in zip(self.baselines.items(), ("--", ":"), strict=False):
            ax.plot(self.horizons, errors, color="C1", linestyle=dashes, label=name)
        ax.set_ylim(bottom=0)
        ax.locator_params(axis="x", integer=True)
        ax.set_xlabel("steps ahead")
        ax.set_ylabel(f"error (root mean square){of}")
        ax.legend()
        return ax


def shown(horizons: Sequence[int]) -> list[int]:
    """Places of the horizons that a table has room for.

    >>> shown(range(1, 25))
    [0, 1, 2, 5, 11, 23]
    """
    last = len(horizons)
    if last <= 12:
        return list(range(last))
    return sorted({0, 1, 2, *(last // n - 1 for n in (1, 2, 4, 8)), *(p - 1 for p in (10, 100, 1000) if p < last // 8)})
