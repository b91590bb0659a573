"""What a trained forecaster is worth on a series' end: errors by horizon, beside the baselines', and an interval."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from bptt.cli.jobs.baselines import last_season, last_value
from bptt.cli.jobs.series import Numbers, SeriesSource, Stretch

LEVEL = 0.8
"""Share of the errors that the interval is to hold."""


@dataclasses.dataclass(frozen=True)
class Forecasts:
    """Forecasts of the test part, in the data's units, in the order of time.

    at: (n,) the steps after which they were made. made, truth: (n, H, K). scale: (K,) deviations of the targets.
    baselines: name -> (n, H, K). low, high: (H, K), what lies between them and a forecast's error is the interval.
    held: share of the truths inside it; low and high are quantiles of errors before the test part.
    """

    at: np.ndarray
    horizons: np.ndarray
    made: np.ndarray
    truth: np.ndarray
    scale: np.ndarray
    baselines: dict[str, np.ndarray]
    low: np.ndarray
    high: np.ndarray
    held: float

    def error(self, forecasts: np.ndarray) -> np.ndarray:
        """Root mean squared error by horizon (H,): in units of a single target, else of the targets' deviations."""
        scale = 1.0 if len(self.scale) == 1 else self.scale
        return np.sqrt(np.nanmean(((forecasts - self.truth) / scale) ** 2, (0, 2)))

    @property
    def energy(self) -> np.ndarray:
        """Share of each target's energy (K,) that is left in the error."""
        return np.nansum((self.made - self.truth) ** 2, (0, 1)) / np.nansum(self.truth**2, (0, 1))


def forecasts(model: Any, source: SeriesSource, season: int | None) -> Forecasts:
    """Forecast the test part; `model` in evaluation mode, on its device. The interval is of errors before that part."""
    found, test = source.found, source.test
    before, at = _errors_before(model, source), test.at
    made, truth = run(model, source, test)
    horizons = np.array(found.horizons)
    baselines: dict[str, np.ndarray] = {}
    if not found.paired:
        start = max(0, at[0] - (season or 0))
        values = np.asarray(found.table.values[start : at[-1] + 1], np.float64)[:, list(found.places)]
        baselines["persistence"] = last_value(values, at - start, horizons)
        if season is not None:
            baselines[f"seasonal-naive ({season})"] = last_season(values, at - start, horizons, season)
    low, high = np.nanquantile(before, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], 0)
    known = ~np.isnan(truth)
    inside = (truth >= made + low) & (truth <= made + high)
    scale = model.deviation.cpu().double().numpy()[list(found.places)] if not found.paired else np.ones(1)
    return Forecasts(at, horizons, made, truth, scale, baselines, low, high, float(inside[known].mean()))


def _errors_before(model: Any, source: SeriesSource) -> np.ndarray:
    """Errors (n, H, K) of the part that weights are chosen by."""
    made, truth = run(model, source, source.validation)
    return truth - made


def run(model: Any, source: SeriesSource, stretch: Stretch) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts and truth (n, H, K) of a stretch, in the order of time."""
    device = next(model.parameters()).device
    state, made, truth, counted = model.initial_state(stretch.rows), [], [], 0
    with torch.no_grad():
        for chunk in source.over(stretch):
            outputs, state = model(chunk.inputs.to(device), state)
            first = max(0, source.context - counted)
            counted += len(chunk.inputs)
            made.append(outputs[first:].cpu().double().numpy())
            truth.append(chunk.targets[first:].double().numpy())

    def in_time(pieces: list[np.ndarray]) -> np.ndarray:
        table = np.concatenate(pieces)
        return table.swapaxes(0, 1).reshape(-1, *table.shape[2:])

    return in_time(made), in_time(truth)


def shown(horizons: np.ndarray) -> list[int]:
    """Places of the horizons that a table has room for.

    >>> shown(np.arange(1, 25))
    [0, 1, 2, 5, 11, 23]
    """
    last = len(horizons)
    if last <= 12:
        return list(range(last))
    return sorted({0, 1, 2, *(last // n - 1 for n in (1, 2, 4, 8)), *(p - 1 for p in (10, 100, 1000) if p < last // 8)})


def as_json(found: Forecasts, numbers: Numbers, season: int | None) -> dict[str, Any]:
    """What the run folder keeps of them."""
    return {
        "targets": list(numbers.targets),
        "horizons": found.horizons.tolist(),
        "steps": len(found.at),
        "rmse": found.error(found.made).tolist(),
        "baselines": {name: found.error(each).tolist() for name, each in found.baselines.items()},
        "season": season,
        "energy_left": found.energy.tolist(),
        "interval": {"level": LEVEL, "low": found.low.tolist(), "high": found.high.tolist(), "held": found.held},
    }
