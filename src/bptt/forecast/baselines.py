"""Forecasts that need no training, to compare with: nothing changes, and the last season comes again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LOOKED_AT = 1 << 15
"""Steps of the training part, its last ones, in which a season is looked for."""
LONGEST = 10_000
CLEAR, NEAR = 0.2, 0.9
"""Least autocorrelation at a season's length; and its share of the largest one, which may lie at a multiple."""


def last_value(values: np.ndarray, at: np.ndarray, horizons: np.ndarray) -> np.ndarray:
    """Persistence: forecasts (len(at), horizons, columns) that nothing will change after each of the steps `at`.

    values: (N, columns). at, horizons: whole numbers, the steps after which is forecast, and how far.

    >>> last_value(np.array([[1.0], [5.0], [2.0]]), np.array([0, 1]), np.array([1, 2]))[:, :, 0].tolist()
    [[1.0, 1.0], [5.0, 5.0]]
    """
    return np.repeat(values[at][:, None], len(horizons), 1)


def last_season(values: np.ndarray, at: np.ndarray, horizons: np.ndarray, season: int) -> np.ndarray:
    """Seasonal-naive: forecasts that each step will be as it was one season of steps before.

    Further ahead than a season it is as many seasons before as are needed to be known at `at`. Arguments otherwise as
    those of `last_value`; each of `at` is at least `season` - 1.

    >>> last_season(np.arange(9.0)[:, None], np.array([5]), np.array([1, 4, 5]), season=4)[0, :, 0].tolist()
    [2.0, 5.0, 2.0]
    """
    back = horizons - season * np.ceil(horizons / season).astype(int)
    return values[at[:, None] + back]


def season_of(values: Any, split: int, places: list[int]) -> int | None:
    """Steps of a season in the training part, None without any.

    values: (N, F), NaN where one is missing. split: steps of the training part. places: of the columns that count.

    That is the first peak of the autocorrelation, beyond its first fall below zero, that is near the largest one: of
    the columns, each without its linear trend, on the end of the training part; or of their changes from step to step,
    since slow drift may hide a season, if that one is shorter. The last 32,768 steps are looked at, and seasons of
    up to 10,000 of them.

    >>> season_of(np.sin(2 * np.pi * np.arange(500) / 12)[:, None], 400, [0])
    12
    """
    start = max(0, split - LOOKED_AT)
    known = np.asarray(values[start:split], np.float64)[:, places]
    known = np.where(np.isnan(known), np.nanmean(known, 0), known)
    found = [season for each in (known, np.diff(known, axis=0)) if (season := _season(each)) is not None]
    return min(found, default=None)


def _season(known: np.ndarray) -> int | None:
    steps = len(known)
    most = min(LONGEST, steps // 3)
    if most < 3:
        return None
    time = np.arange(steps) - (steps - 1) / 2
    apart = known - known.mean(0)
    apart = apart - np.outer(time, time @ apart / (time @ time))
    size = 1 << math.ceil(math.log2(2 * steps))
    spectrum = np.fft.rfft(apart, size, axis=0)
    products = np.fft.irfft(np.abs(spectrum) ** 2, size, axis=0)[: most + 1] / (steps - np.arange(most + 1))[:, None]
    moving = products[0] > 1e-12 * np.maximum(known.mean(0) ** 2, 1e-300)
    if not moving.any():
        return None
    correlation = (products[:, moving] / products[0, moving]).mean(1)
    below = np.flatnonzero(correlation < 0)
    if not len(below) or below[0] >= most - 2:
        return None
    beyond = correlation[below[0] : -1]
    peaks = below[0] + np.flatnonzero((beyond[1:-1] >= beyond[:-2]) & (beyond[1:-1] >= beyond[2:])) + 1
    clear = [int(lag) for lag in peaks if correlation[lag] >= max(CLEAR, NEAR * beyond.max())]
    return clear[0] if clear else None
