"""Held-out forecasts with truth and interval, and errors by horizon, as PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bptt.cli.jobs.forecasts import LEVEL, Forecasts
from bptt.cli.plots import BLUE, GREY, ORANGE, PALE, style

ORIGINS, LEAST, MOST = 3, 60, 2000
"""Paths that are drawn; steps of truth around them, at the least and the most."""
DASHES = ("--", ":")


def forecast_plot(found: Forecasts, target: str, title: str, path: Path) -> None:
    """The end of the held-out data with the forecasts of its first target, and the error over the horizon."""
    several = len(found.horizons) > 1
    figure = Figure(figsize=(9, 7 if several else 4.5), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    above, *below = figure.subplots(2 if several else 1, 1, squeeze=False)[:, 0]
    style(above, "step", target)
    above.xaxis.label.set_parse_math(False)
    above.yaxis.label.set_parse_math(False)
    _paths(above, found) if several else _line(above, found)
    above.legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    if below:
        _errors(below[0], found)
    figure.savefig(path)


def _paths(axes: Axes, found: Forecasts) -> None:
    """What was forecast from some steps, for all horizons."""
    last, count = found.horizons[-1], len(found.at)
    most = min(MOST, max(LEAST, (ORIGINS + 1) * last))
    shown = slice(max(0, count - most), count)
    axes.plot(found.at[shown] + found.horizons[0], found.truth[shown, 0, 0], color=GREY, linewidth=1.2, label="truth")
    for i in range(ORIGINS):
        place = count - 1 - i * last
        if place < shown.start:
            break
        when, made = found.at[place] + found.horizons, found.made[place, :, 0]
        label = f"{LEVEL:.0%} interval" * (i == 0)
        axes.fill_between(
            when, made + found.low[:, 0], made + found.high[:, 0], color=PALE, alpha=0.6, linewidth=0, label=label
        )
        axes.plot(when, found.truth[place, :, 0], color=GREY, linewidth=1.2)
        axes.plot(when, made, color=BLUE, linewidth=1.6, label="forecast" * (i == 0))


def _line(axes: Axes, found: Forecasts) -> None:
    """What was forecast for each step, one horizon."""
    shown = slice(max(0, len(found.at) - 5 * LEAST), None)
    when, made = found.at[shown] + found.horizons[0], found.made[shown, 0, 0]
    low, high = made + found.low[0, 0], made + found.high[0, 0]
    axes.fill_between(when, low, high, color=PALE, alpha=0.6, linewidth=0, label=f"{LEVEL:.0%} interval")
    axes.plot(when, found.truth[shown, 0, 0], color=GREY, linewidth=1.2, label="truth")
    axes.plot(when, made, color=BLUE, linewidth=1.2, label="model")


def _errors(axes: Axes, found: Forecasts) -> None:
    of = "" if len(found.scale) == 1 else ", in deviations of the targets"
    style(axes, "steps ahead", f"error (root mean square){of}")
    axes.plot(found.horizons, found.error(found.made), "o-", color=BLUE, markersize=3, label="model")
    for (name, made), dashes in zip(found.baselines.items(), DASHES, strict=False):
        axes.plot(found.horizons, found.error(made), color=ORANGE, linestyle=dashes, label=name)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
