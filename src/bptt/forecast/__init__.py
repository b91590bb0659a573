"""Forecasts of numbers in order: what is held out, forecasts that need no training, errors by horizon, an interval.

A `Series` says what is to be forecast, a `Source` reads it in lanes, `forecaster` makes a network with its scales, and
`forecasts` measures a trained one on the end that nothing was trained on. Training is a loop over `bptt.unroll`.
"""

from bptt.forecast.baselines import last_season, last_value, season_of
from bptt.forecast.errors import Errors, Interval
from bptt.forecast.forecasts import Forecasts, forecaster, forecasts
from bptt.forecast.lanes import Source
from bptt.forecast.series import Scale, Series, scale_of, series_of

__all__ = [
    "Errors",
    "Forecasts",
    "Interval",
    "Scale",
    "Series",
    "Source",
    "forecaster",
    "forecasts",
    "last_season",
    "last_value",
    "scale_of",
    "season_of",
    "series_of",
]
