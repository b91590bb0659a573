"""What a forecaster is worth on a series' end: forecasts, beside those that need no training, with an interval."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from bptt.analysis.shown import axes
from bptt.forecast.baselines import last_season, last_value, season_of
from bptt.forecast.errors import LEVEL, Errors, Interval
from bptt.forecast.lanes import Source, Stretch
from bptt.forecast.series import Scale, Series, changes, scale_of
from bptt.models import Forecaster

ORIGINS, LEAST, MOST = 3, 60, 2000
"""Paths that are drawn; steps of truth around them, at the least and the most."""


def forecaster(
    series: Series,
    cell: str = "lstm",
    hidden: int = 64,
    layers: int = 1,
    *,
    inputs: Scale | None = None,
    targets: Scale | None = None,
    dtype: torch.dtype = torch.float64,
) -> Forecaster:
    """A `bptt.models.Forecaster` with its first weights, and the scales of a series' training part.

    Arguments:
        cell, hidden, layers, dtype: as `Forecaster` takes them.
        inputs, targets: the scales, where `scale_of` was called already.

    Raises: ValueError for values that are infinite, and columns without any number in the training part.
    Cost: a pass over the values.

    >>> from bptt.data import Table
    >>> from bptt.forecast import series_of
    >>> wave = np.sin(np.arange(2000) / 4)[:, None] + 20
    >>> model = forecaster(series_of(Table(wave, ("level",)), horizon=8), "gru", hidden=4)
    >>> round(model.mean.item(), 2), model.unit.shape
    (20.0, torch.Size([8, 1]))
    """
    inputs = inputs or scale_of(series.table.values, series.split)
    targets = targets or (scale_of(series.wanted.values, series.split) if series.paired else inputs)
    count, horizons, at = len(series.targets), len(series.horizons), list(series.places)
    places = None if series.paired else series.places
    model = Forecaster(len(series.table.columns), places, count, horizons, cell, hidden, layers, dtype)
    unit = targets.deviation[at][None] if series.paired else changes(series)
    for name, value in (
        ("mean", inputs.mean),
        ("deviation", np.where(inputs.constant, 1.0, inputs.deviation)),
        ("target_mean", targets.mean[at]),
        ("unit", np.broadcast_to(np.where(unit > 0, unit, targets.deviation[at]), (horizons, count))),
    ):
        getattr(model, name).copy_(torch.from_numpy(np.array(value)))
    return model


@dataclasses.dataclass(frozen=True)
class Forecasts:
    """Forecasts of the last tenth of a series, in the data's units, in the order of time.

    at: (n,) the steps after which they were made. made, truth: (n, H, K). scale: (K,) deviations of the targets.
    baselines: name -> (n, H, K). low, high: (H, K), what lies between them and a forecast's error is the interval.
    held: share of the truths inside it; low and high are quantiles of errors before the last tenth.
    season: steps of one, None without.
    """

    series: Series
    at: np.ndarray
    made: np.ndarray
    truth: np.ndarray
    scale: np.ndarray
    baselines: dict[str, np.ndarray]
    low: np.ndarray
    high: np.ndarray
    held: float
    season: int | None

    @property
    def horizons(self) -> np.ndarray:
        """(H,) steps ahead."""
        return np.array(self.series.horizons)

    def error(self, forecasts: np.ndarray) -> np.ndarray:
        """Root mean squared error by horizon (H,): in units of a single target, else of the targets' deviations."""
        scale = 1.0 if len(self.scale) == 1 else self.scale
        return np.sqrt(np.nanmean(((forecasts - self.truth) / scale) ** 2, (0, 2)))

    def errors(self) -> Errors:
        """The errors by horizon, as a result that shows itself."""
        apart = (self.made - self.truth) ** 2
        return Errors(
            targets=self.series.targets,
            horizons=self.series.horizons,
            steps=len(self.at),
            rmse=tuple(self.error(self.made).tolist()),
            baselines={name: tuple(self.error(each).tolist()) for name, each in self.baselines.items()},
            season=self.season,
            energy_left=tuple((np.nansum(apart, (0, 1)) / np.nansum(self.truth**2, (0, 1))).tolist()),
            interval=Interval(LEVEL, self.low.tolist(), self.high.tolist(), self.held),
            by_target=tuple(np.sqrt(np.nanmean(apart, (0, 1))).tolist()),
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the end of the first target with what was forecast of it, and the interval; returns the axes.

        For several horizons these are the last few paths, for a single one what was forecast for each step.
        """
        ax = axes(ax)
        _paths(ax, self) if len(self.series.horizons) > 1 else _line(ax, self)
        ax.set_xlabel("step", parse_math=False)
        ax.set_ylabel(self.series.targets[0], parse_math=False)
        ax.legend()
        return ax


def forecasts(model: Any, source: Source, season: int | None = None, *, seek: bool = True) -> Forecasts:
    """Forecast the last tenth of a series. The interval is made of errors on the tenth before it.

    Arguments:
        model: a recurrence on one device, in evaluation mode, whose outputs are forecasts (T, B, horizons, targets) in
            the data's units: a `Forecaster`, or yours with `initial_state(rows)`.
        source: the `Source` that it was trained on.
        season: steps of one, for forecasts that the last season comes again; looked for if None and `seek`.

    Cost: the model runs over the last fifth once, without a graph.

    >>> from bptt.data import Table
    >>> from bptt.forecast import series_of
    >>> series = series_of(Table(np.sin(2 * np.pi * np.arange(4000) / 24)[:, None] + 20, ("level",)), horizon=2)
    >>> found = forecasts(forecaster(series, hidden=4).eval(), Source(series))
    >>> found.season, found.made.shape
    (24, (398, 2, 1))
    >>> print(found.errors().verdict().splitlines()[0])  # it was not trained
    Not better than persistence and seasonal-naive (24) at 1, 2 steps ahead.
    """
    series, test = source.series, source.test
    if season is None and seek and not series.paired:
        season = season_of(series.table.values, series.split, list(series.places))
    made, truth = _run(model, source, source.validation)
    before, at = truth - made, test.at
    made, truth = _run(model, source, test)
    horizons = np.array(series.horizons)
    baselines: dict[str, np.ndarray] = {}
    scale = np.ones(len(series.places))
    if not series.paired:
        start = max(0, at[0] - (season or 0))
        values = np.asarray(series.table.values[start : at[-1] + 1], np.float64)[:, list(series.places)]
        baselines["persistence"] = last_value(values, at - start, horizons)
        if season is not None:
            baselines[f"seasonal-naive ({season})"] = last_season(values, at - start, horizons, season)
        if len(scale) > 1:
            scale = scale_of(series.table.values, series.split).deviation[list(series.places)]
    low, high = np.nanquantile(before, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], 0)
    known = ~np.isnan(truth)
    held = ((truth >= made + low) & (truth <= made + high))[known].mean()
    return Forecasts(series, at, made, truth, scale, baselines, low, high, float(held), season)


def _run(model: Any, source: Source, stretch: Stretch) -> tuple[np.ndarray, np.ndarray]:
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


def _paths(ax: Any, found: Forecasts) -> None:
    """What was forecast from some steps, for all horizons."""
    last, count = found.series.horizons[-1], len(found.at)
    most = min(MOST, max(LEAST, (ORIGINS + 1) * last))
    shown = slice(max(0, count - most), count)
    ink = ax.xaxis.label.get_color()
    ax.plot(found.at[shown] + found.series.horizons[0], found.truth[shown, 0, 0], color=ink, lw=1.2, label="truth")
    for i in range(ORIGINS):
        place = count - 1 - i * last
        if place < shown.start:
            break
        when, made = found.at[place] + found.horizons, found.made[place, :, 0]
        label = f"{LEVEL:.0%} interval" * (i == 0)
        ax.fill_between(
            when, made + found.low[:, 0], made + found.high[:, 0], color="C0", alpha=0.25, linewidth=0, label=label
        )
        ax.plot(when, found.truth[place, :, 0], color=ink, lw=1.2)
        ax.plot(when, made, color="C0", linewidth=1.6, label="forecast" * (i == 0))


def _line(ax: Any, found: Forecasts) -> None:
    """What was forecast for each step, one horizon."""
    shown = slice(max(0, len(found.at) - 5 * LEAST), None)
    when, made = found.at[shown] + found.series.horizons[0], found.made[shown, 0, 0]
    low, high = made + found.low[0, 0], made + found.high[0, 0]
    ax.fill_between(when, low, high, color="C0", alpha=0.25, linewidth=0, label=f"{LEVEL:.0%} interval")
    ax.plot(when, found.truth[shown, 0, 0], color=ax.xaxis.label.get_color(), lw=1.2, label="truth")
    ax.plot(when, made, color="C0", linewidth=1.2, label="model")
